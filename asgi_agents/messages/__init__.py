"""How messages name what users have written."""
