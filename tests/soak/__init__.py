"""Whether anything is left of two hundred thousand requests: ``python -m tests.soak``.

Clients come and go, in the middle of requests and of responses as well, are blocked, and meet agents that fail and are
killed. Again and again all of them go away, and the guarded app is asked what it has left: file descriptors, tasks,
permits, correlation ids, memory. None of these may grow.
"""
