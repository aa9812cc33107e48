"""The head of a request, as the engine is given it."""

from typing import Any, Final

from libmodsecurity import Transaction

from ..protocol import RequestHeadersEvent
from .modsecurity_fields import request_fields_of
from .modsecurity_response import done
from .modsecurity_rules import Rules, engine

# No target of a request has a fragment (RFC 9112, section 3.2), so that these are parts of path or query. The engine
# would look at nothing behind them.
_DATA: Final = str.maketrans({"#": "%23", "\0": "%00"})


def begin(rules: Rules, event: RequestHeadersEvent, port: int, *, is_bare: bool) -> Any:
    """A transaction of the engine, whose phase 1 has ended.

    The type checker knows the texts that the engine takes. It takes bytes as well, which are what was sent.

    :param is_bare: it is given no query and no header fields.
    """
    about = event.metadata
    made: Any = Transaction(engine(), rules.engine, about.correlation_id)
    # Over a Unix socket there is no address: this is nobody's, which no rule takes for one that it knows.
    done(made.process_connection(about.client_ip or "0.0.0.0", about.client_port, "127.0.0.1", port))  # noqa: S104
    uri = event.uri.partition("?")[0] if is_bare else event.uri
    done(made.process_uri(uri.translate(_DATA).encode("latin-1"), event.method, about.protocol.removeprefix("HTTP/")))
    if not is_bare:
        for name, value in request_fields_of(event.headers):
            done(made.add_request_header(name, value))
    done(made.process_request_headers())
    return made
