"""What ``python -m example_app`` is made of: servers, a script of requests, and what is printed of them."""
