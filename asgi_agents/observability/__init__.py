"""What is told of calls and connections: counts, instruments, spans, names and the id of each connection."""
