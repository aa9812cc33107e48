"""Bodies that a processor holds back and releases as it likes, for any way to cut them and any way to answer."""

from collections.abc import Sequence
from typing import Any, Final

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents.protocol import EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from asgi_agents.transports.grpc import ext_proc_exchange
from asgi_agents.transports.grpc.ext_proc_exchange import ProcessedExchange
from asgi_agents.transports.grpc.ext_proc_messages import Side, messages
from asgi_agents.transports.grpc.ext_proc_sides import Held
from asgi_agents.transports.grpc.transport import GrpcTransport
from tests.serve.grpc.proxy import settings_of

HEARD: Final = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK})
CHUNKS: Final = st.lists(st.binary(max_size=6), min_size=1, max_size=6)


class Wire:
    """A processor that answers at once, if at all.

    :param plan: how much of what it holds it releases at each message, from nothing (0) to everything (4); it repeats.
    :param changes: it makes capitals of everything.
    """

    congested = False

    def __init__(self, plan: Sequence[int], changes: bool, receiver: Any) -> None:
        self._plan = plan
        self._changes = changes
        self._receiver = receiver
        self._held = dict.fromkeys(Side, b"")
        self._count = 0

    def write(self, data: bytes) -> None:
        request = messages.ProcessingRequest.FromString(data)
        side = Side(request.WhichOneof("request").removesuffix("_body"))
        part = getattr(request, f"{side.value}_body")
        held = self._held[side] + (part.body.upper() if self._changes else part.body)
        share = 4 if part.end_of_stream else self._plan[self._count % len(self._plan)]
        self._count += 1
        piece, self._held[side] = held[: len(held) * share // 4], held[len(held) * share // 4 :]
        # In two messages, of which one may be empty.
        for half, last in ((piece[: len(piece) // 2], False), (piece[len(piece) // 2 :], part.end_of_stream)):
            if share:
                mutation = {"streamed_response": {"body": half, "end_of_stream": last}}
                answer = {f"{side.value}_body": {"response": {"body_mutation": mutation}}}
                self._receiver.data_received(messages.ProcessingResponse(**answer).SerializeToString())

    def close(self) -> None:
        pass


class Channel:
    def __init__(self, plan: Sequence[int], changes: bool) -> None:
        self._plan = plan
        self._changes = changes

    def wire(self, method: str, receiver: Any, metadata: Any = ()) -> Wire:
        return Wire(self._plan, self._changes, receiver)


async def pass_on(chunks: Sequence[bytes], side: Side, plan: Sequence[int], changes: bool) -> tuple[bytes, list[bool]]:
    """What leaves of a body, and whether the processor held something after each piece."""
    settings = settings_of("grpc://127.0.0.1:1", body_mode="full_duplex_streamed")
    exchange = ProcessedExchange(Channel(plan, changes), settings, HEARD, Held(1000))  # type: ignore[arg-type]
    left, held = b"", []
    for index, chunk in enumerate(chunks):
        last = index == len(chunks) - 1
        make: Any = RequestBodyChunkEvent if side is Side.REQUEST else ResponseBodyChunkEvent
        answer = await exchange.call(make(correlation_id="c", data=chunk, is_last=last, chunk_index=index))
        mutation = getattr(answer, f"{side.value}_body_mutation")
        left += chunk if mutation is None else mutation.data
        held.append(exchange.holds(side))
    exchange.close()
    return left, held


@given(CHUNKS, st.sampled_from(list(Side)), st.lists(st.integers(0, 4), min_size=1, max_size=5), st.booleans())
def test_what_leaves_is_what_it_releases_in_order_and_nothing_stays(
    chunks: list[bytes], side: Side, plan: list[int], changes: bool
) -> None:
    whole = b"".join(chunks)
    with pytest.MonkeyPatch.context() as patch:
        # It has answered by then, or it holds everything back.
        patch.setattr(ext_proc_exchange, "PATIENCE", 0)
        left, held = anyio.run(pass_on, chunks, side, plan, changes)
    assert left == (whole.upper() if changes else whole)
    assert held[-1] is False
    if set(plan) == {4} and not changes:
        # It echoes: nobody has anything of the body that has not left.
        assert not any(held)
    elif set(plan) == {0} and len(chunks) > 1 and chunks[0]:
        assert all(held[:-1])


def test_what_it_holds_is_compared_for_a_mebibyte_and_counts_as_held_from_there_on() -> None:
    half = ext_proc_exchange._HalfState()
    half.sent(b"x" * (1024 * 1024))
    half.released(b"x" * (1024 * 1024))
    assert not half.holds
    half.sent(b"x" * (1024 * 1024 + 1))
    half.released(b"x" * (1024 * 1024 + 1))
    assert half.holds
    half.over = True
    assert not half.holds


def test_the_transport_says_where_it_is() -> None:
    transport = GrpcTransport("grpc://127.0.0.1:9001", protocol="ext_proc", body_mode="full_duplex_streamed")
    client = transport.bind("processor", events=frozenset({EventType.RESPONSE_BODY_CHUNK}))
    assert client.address == "grpc://127.0.0.1:9001"
    # It is shown heads before bodies, and the request that says whether its response may have one.
    assert client.hears == {EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}
