"""Everything that can go wrong with agents does, while many clients want something: ``python -m tests.chaos``.

The guarded app and every agent run in processes of their own. A schedule that a seed decides kills, freezes, slows,
drains and restarts the agents, and proxies between them and the app cut, delay and corrupt what they say. Whatever a
client gets meanwhile is checked against what the middleware promises.
"""
