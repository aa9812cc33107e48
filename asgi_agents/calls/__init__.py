"""What one call to an agent is made of, around the guard."""
