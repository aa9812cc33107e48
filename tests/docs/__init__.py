"""README and documentation: every code block runs, every link leads somewhere."""
