"""What operators can see of calls and connections: metrics, spans, correlation ids, and what is redacted in them."""
