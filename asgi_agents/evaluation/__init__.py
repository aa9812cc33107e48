"""The agents of a route, and how they are asked about an event."""
