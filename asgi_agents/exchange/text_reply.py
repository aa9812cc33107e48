"""What a client is answered whose call guardrails have stopped, while nothing has left."""

from starlette.types import Scope

from ..guardrails.dialect import Dialect
from ..guardrails.dialects.known import is_general
from ..guardrails.dialects.pointers import Pointers
from .rendering import Renderers
from .reply import render_reply
from .scope import RawHeaders
from .text_asking import Stopped


def stopped_reply(
    stopped: Stopped, dialect: Dialect, scope: Scope, renderers: Renderers
) -> tuple[int, RawHeaders, bytes]:
    """Status, headers and body: in the terms of the dialect, or where no client has any for it, of the middleware."""
    if is_general(dialect) or type(dialect) is Pointers:
        reply = render_reply(stopped.decision, scope, renderers)
        return reply.status, reply.headers, reply.body
    said = dialect.reply(stopped.stop)
    headers: RawHeaders = [
        (b"content-type", said.media_type.encode()),
        (b"content-length", b"%d" % len(said.body)),
    ]
    failure = stopped.decision.failure
    if failure is not None and failure.block.headers is not None:
        headers += [(name.encode(), value.encode()) for name, value in failure.block.headers.items()]
    return said.status, headers, said.body
