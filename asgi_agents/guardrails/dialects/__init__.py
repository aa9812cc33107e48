"""How apps and clients write calls, answers and streams: one module each; :mod:`.known` chooses among them."""
