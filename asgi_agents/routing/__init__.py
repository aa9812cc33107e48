"""Which agents are asked about which paths."""
