"""The steps of one call to an agent, in the order in which the guard takes them: wait, deliver, check, record."""
