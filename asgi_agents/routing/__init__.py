"""Which agents hear which paths."""
