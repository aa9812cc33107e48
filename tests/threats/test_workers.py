"""One agent with state, asked by several processes, of which clients may give each the same ``x-request-id``."""

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.stream_agents.processes import PythonProcess, until

from .raw import answer_of, connected, say

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't fork here")
pytest.importorskip("grpc", reason="there is no grpcio here")

KINDS = ["unix", "http", "grpc"]
_numbers = count()


class Workers(NamedTuple):
    """Where the workers are: two of one start, the second forked from the first, and two of another."""

    urls: list[str]

    def noted(self, kind: str) -> dict[str, list[str]]:
        """What the agent has noted."""
        answer = say(self.urls[0], _head(kind, "x-tell: 1", "connection: close"))
        noted: dict[str, list[str]] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return noted


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="agents-") as directory, ExitStack() as stack:
        place = Path(directory)

        def started(name: str, *module: str, says: str, times: int) -> list[str]:
            process = PythonProcess(place / name, module)
            process.start()
            stack.callback(process.end)
            until(lambda: len(re.findall(says, process.said)) == times or process.ended, told=lambda: process.said)
            assert not process.ended, process.said
            return re.findall(says, process.said)

        where = ["--bind", f"unix://{place}/a.sock", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        agent = f"{__package__}.keeper:Keeper"
        listening = started("agent", "asgi_agents.serve", agent, *where, says=r"listening on (\S+)", times=3)
        urls = {address.partition(":")[0].removesuffix("s"): address for address in listening}
        assert set(urls) == set(KINDS), listening
        ports = [
            port
            for name in ("one", "other")
            for port in started(name, f"{__package__}.keeper", json.dumps(urls), says=r"serving on (\d+)", times=2)
        ]
        yield Workers([f"http://127.0.0.1:{port}" for port in ports])


def _head(kind: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST /{kind} HTTP/1.1", "host: app", *lines, "", "")).encode()


class Upload:
    """A request whose body is yet to come."""

    def __init__(self, stack: ExitStack, url: str, kind: str, name: str, owner: str, *more: str) -> None:
        self.owner = f"{owner}-{next(_numbers)}"
        self.sock: socket.socket = stack.enter_context(connected(url))
        given = (f"x-request-id: {name}", f"x-owner: {self.owner}", f"content-length: {len(self.owner)}")
        self.sock.sendall(_head(kind, *given, "connection: close", *more))

    def until_begun(self) -> None:
        """Wait until its head has passed the agent."""
        said = b""
        while b"begun." not in said:
            data = self.sock.recv(65536)
            assert data, said
            said += data

    def finish(self) -> bytes:
        """Send the body; all that is answered from now on."""
        self.sock.sendall(self.owner.encode())
        return answer_of(self.sock)


# A process and its child; two that have nothing in common.
PAIRS = {"forked": (0, 1), "started apart": (0, 2), "both forked": (1, 3)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["one-name", "x" * 128, "~", "a~b~", "0198c1a2-0000-7000-8000-000000000000"])
def test_workers_that_ask_one_agent_never_mix_the_requests_of_one_id(
    workers: Workers, pair: str, kind: str, name: str
) -> None:
    first_url, second_url = (workers.urls[number] for number in PAIRS[pair])
    with ExitStack() as stack:
        first = Upload(stack, first_url, kind, name, "first")
        first.until_begun()
        second = Upload(stack, second_url, kind, name, "second")
        second.until_begun()
        # The agent has both heads. Each body is that of its own head, and the end of one is not that of the other.
        assert b"ended." in first.finish()
        until(lambda: first.owner in workers.noted(kind)["complete"])
        assert b"ended." in second.finish()
        until(lambda: second.owner in workers.noted(kind)["complete"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_request_that_is_cancelled_takes_no_other_of_its_id_with_it(workers: Workers, pair: str, kind: str) -> None:
    first_url, second_url = (workers.urls[number] for number in PAIRS[pair])

    def noted(what: str) -> Any:
        return workers.noted(kind)[what]

    with ExitStack() as stack:
        first = Upload(stack, first_url, kind, "one-name", "first", "x-wait: 1")
        second = Upload(stack, second_url, kind, "one-name", "second", "x-wait: 1")
        until(lambda: {first.owner, second.owner} <= set(noted("waiting")))
        say(first_url, _head(kind, f"x-cancel: {first.owner}", "connection: close"))
        until(lambda: first.owner in noted("cancelled"))
        assert second.owner not in noted("cancelled")
        letting_go = Upload(stack, first_url, kind, "another-name", "third", "x-go: 1")
        letting_go.until_begun()
        second.until_begun()
        assert b"ended." in second.finish()
        assert b"ended." in letting_go.finish()
