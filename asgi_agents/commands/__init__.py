"""The subcommands of ``python -m asgi_agents``: one module each, with a function ``add_parser(subparsers)``.

It adds the subcommand's parser, and sets ``run`` in its defaults to a function that takes the parsed options and
returns the exit code.
"""
