"""How error messages and logs name values and code of the user."""
