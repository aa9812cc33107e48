"""Mistakes on the command line of ``python -m asgi_agents.serve``."""

from typing import Final

from .mistake import Mistake

SERVING: Final = (
    Mistake(
        title="A dot in place of the colon",
        code="python -m asgi_agents.serve waf.Waf --bind tcp://127.0.0.1:9000",
        instead="`waf:Waf`",
        command=True,
    ),
    Mistake(
        title="An app in place of an agent",
        code="python -m asgi_agents.serve main:app --bind tcp://127.0.0.1:9000",
        instead="`uvicorn main:app` for the app, and this for its agents.",
        command=True,
    ),
    Mistake(
        title="A port without a host",
        code="python -m asgi_agents.serve waf:Waf --http 9000",
        instead="`--http 127.0.0.1:9000`",
        command=True,
    ),
    Mistake(
        title="The path of a socket",
        code="python -m asgi_agents.serve waf:Waf --bind /run/waf.sock",
        instead="`--bind unix:///run/waf.sock`",
        command=True,
    ),
    Mistake(
        title="A directory that is not there",
        code="python -m asgi_agents.serve waf:Waf --bind unix:///no-such-directory/waf.sock",
        instead="`mkdir` before; under systemd `RuntimeDirectory=waf` and `unix:///run/waf/waf.sock`.",
        command=True,
    ),
    Mistake(
        title="No address",
        code="python -m asgi_agents.serve waf:Waf",
        instead="`--bind unix:///run/waf.sock`",
        command=True,
    ),
)
