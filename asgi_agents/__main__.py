"""The command line: ``python -m asgi_agents check main:app``."""

import sys

from .commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
