"""A small shop behind agents. ``python -m example_app`` starts it, plays a script against it and goes on serving."""
