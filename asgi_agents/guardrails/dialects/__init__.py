"""How apps and clients write calls, answers and streams."""
