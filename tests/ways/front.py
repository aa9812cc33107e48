"""A case's client, of a server that is reached over the network: raw HTTP/1.1, and real websockets."""

import http.client
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .app import HAVE_BEGUN
from .case import Case, Outcome
from .direct import PATIENCE, outcome


def outcome_over(url: str, case: Case, run: str) -> Outcome:
    """What comes of the case, asked of the server at ``url``. ``run`` names it to the app."""
    return _http(url, case, run) if case.messages is None else _websocket(url, case, run)


def _http(url: str, case: Case, run: str) -> Outcome:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    connection.putrequest(case.method, case.target, skip_accept_encoding=True)
    for name, value in (("x-run", run), *case.headers):
        connection.putheader(name, value.encode("latin-1"))
    chunked = isinstance(case.body, tuple)
    if chunked:
        connection.putheader("transfer-encoding", "chunked")
    elif case.body is not None:
        connection.putheader("content-length", str(len(case.content)))
    connection.endheaders()
    cut = False
    try:
        try:
            if isinstance(case.body, tuple):
                for piece in case.body:
                    connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                connection.send(b"0\r\n\r\n")
            elif case.body:
                connection.send(case.body)
        except OSError:
            # It has answered before it has read all of it.
            pass
        response = connection.getresponse()
        try:
            body = bytes(response.read1())
            HAVE_BEGUN.add(run)
            body += response.read()
        except (http.client.HTTPException, OSError):
            body, cut = b"", True
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.getheaders()]
        return outcome(case, run, response.status, headers, body, cut=cut)
    finally:
        connection.close()


def _websocket(url: str, case: Case, run: str) -> Outcome:
    got: list[bytes] = []
    try:
        with connect(
            f"ws{url.removeprefix('http').rstrip('/')}{case.target}",
            additional_headers=[("x-run", run), *case.headers],
            user_agent_header=None,
            compression=None,
            open_timeout=PATIENCE,
        ) as session:
            try:
                for message in case.messages or ():
                    session.send(message)
                while True:
                    received = session.recv(PATIENCE)
                    got.append(received.encode() if isinstance(received, str) else received)
            except ConnectionClosed as exc:
                end = exc.rcvd
                close = (1006, "") if end is None else (end.code, end.reason)
                return outcome(case, run, 101, [], b"\n".join(got), close=close)
    except InvalidStatus as exc:
        response = exc.response
        headers = [(name.encode(), value.encode("latin-1")) for name, value in response.headers.raw_items()]
        return outcome(case, run, response.status_code, headers, bytes(response.body))
