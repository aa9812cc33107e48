"""What is imported when it is asked for."""
