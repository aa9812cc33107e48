"""What an agent costs: requests per second through uvicorn, as a share of the same app with no middleware.

``python -m tests.benchmarks`` measures every variant in :mod:`.apps` and prints a Markdown table. Each variant is an
app in a server process of its own, remote agents are further processes, and one more process makes the requests. All
servers are started at once and loaded one at a time, round after round, so that whatever else the machine does meets
every row alike.

A new row is a :class:`~.variant.Variant` in ``apps.VARIANTS``: a name, an app factory, and the peers that the app talks
to.
"""
