"""Stands between the middleware and one agent process, and lets everything pass until it is told otherwise."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

from .corruption import CHANCES, Fate, Speech, Wire, fate, messages

_READ = 64 * 1024
_HTTP = frozenset({Speech.HTTP, Speech.HTTP2})


class Proxy:
    """Listens on a Unix socket at ``path``, or with None on a port of the loopback interface."""

    def __init__(self, upstream: str, speech: Speech, path: str | None, chance: random.Random) -> None:
        self._upstream = upstream
        self._speech = speech
        self._path = path
        self._chance = chance
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        #: What is happening to messages now.
        self.wire: Wire | None = None
        #: How many it has happened to.
        self.met: Counter[Wire] = Counter()

    async def start(self) -> str:
        """Listen; returns the address, for the agent's configuration."""
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self._path)
            return f"unix://{self._path}"
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"{'http' if self._speech is Speech.HTTP else 'tcp'}://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Break all connections off."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            # The stream's own callback would log it.
            pass
        finally:
            self._serving.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_agent, to_agent = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            return
        # What is asked over HTTP passes as it is: it would be refused, and that is an answer like any other.
        events = _Pump(self, from_reader=reader, to=to_agent, whole=self._speech in _HTTP)
        answers = _Pump(self, from_reader=from_agent, to=writer, whole=False)
        pumps = [asyncio.create_task(events.run()), asyncio.create_task(answers.run())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_agent.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def decide(self, message: bytes) -> Fate | None:
        """What happens to a message; None where nothing does."""
        wire = self.wire
        if wire is None or wire is Wire.TRICKLE or self._chance.random() >= CHANCES[wire]:
            return None
        decided = fate(message, wire, self._speech, self._chance)
        if decided is not None:
            self.met[wire] += 1
        return decided

    @property
    def speech(self) -> Speech:
        """What is spoken through it."""
        return self._speech

    def piece(self) -> int:
        """Bytes to send at once while they trickle."""
        return self._chance.randrange(1, 200)


class _Pump:
    """One direction of a connection, until the sender has ended or it is cut."""

    def __init__(
        self, proxy: Proxy, *, from_reader: asyncio.StreamReader, to: asyncio.StreamWriter, whole: bool
    ) -> None:
        self._proxy = proxy
        self._reader = from_reader
        self._writer = to
        self._whole = whole
        self._late: set[asyncio.Task[None]] = set()
        # One message at a time, however slowly it trickles.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        buffer = bytearray()
        try:
            with suppress(OSError):
                while data := await self._reader.read(_READ):
                    if self._whole:
                        await self._write(data)
                        continue
                    buffer += data
                    for message in messages(buffer, self._proxy.speech):
                        decided = self._proxy.decide(message) or Fate(message)
                        if await self._deliver(decided):
                            return
        finally:
            for task in self._late:
                task.cancel()

    async def _deliver(self, decided: Fate) -> bool:
        """Returns whether that was the end."""
        if decided.delay and self._proxy.speech is Speech.V2:
            # Those that follow overtake it.
            task = asyncio.create_task(self._later(decided))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return False
        await asyncio.sleep(decided.delay)
        await self._write(decided.data)
        if decided.end:
            # What was written is to arrive, and then nothing more.
            self._writer.close()
        return decided.end

    async def _later(self, decided: Fate) -> None:
        await asyncio.sleep(decided.delay)
        with suppress(OSError):
            await self._write(decided.data)

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            await self._write_in_turn(data)

    async def _write_in_turn(self, data: bytes) -> None:
        if self._proxy.wire is not Wire.TRICKLE:
            self._writer.write(data)
            await self._writer.drain()
            return
        self._proxy.met[Wire.TRICKLE] += 1
        while data and self._proxy.wire is Wire.TRICKLE:
            size = self._proxy.piece()
            self._writer.write(data[:size])
            data = data[size:]
            await self._writer.drain()
            await asyncio.sleep(0.002)
        self._writer.write(data)
        await self._writer.drain()
