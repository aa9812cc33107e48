"""What ``python -m example_app`` is made of: servers, a script of requests, and a table of what came of them."""
