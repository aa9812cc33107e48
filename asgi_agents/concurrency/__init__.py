"""Tasks, event loops, cancellation and limits, for asyncio and trio alike."""
