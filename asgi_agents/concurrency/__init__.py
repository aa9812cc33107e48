"""Tasks, event loops, cancellation and limits: what asyncio and trio have in common."""
