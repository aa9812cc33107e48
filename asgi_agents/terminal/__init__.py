"""What the command lines of the package share."""
