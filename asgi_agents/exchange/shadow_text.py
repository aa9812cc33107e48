"""Shadow agents as guardrails: they judge copies of the text, off the path, and what they say is recorded.

::

    app ──send──> ShadowText.copying ──> the answer, as if there were no shadow agents
                      │ copies
                   _Shadow, one of each agent: a backlog, and a task that empties it
                      └─> ShadowAnswer      a TextAnswer whose output is thrown away

An agent that is too slow has the rest of the text dropped, which is counted. It never holds anything up.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from starlette.types import Message, Send

from ..errors import ClosedByAgent
from ..evaluation.text_judges import JudgeSet, RouteJudge
from ..guardrails.backlog import Backlog
from ..guardrails.body import Body
from ..guardrails.framing import UnreadableError
from . import answer_form
from .headers import media_type
from .request_form import REQUEST_KINDS
from .response import BODY_BYPASSES
from .text_answer import TextAnswer
from .text_asking import Asking, Stopped

logger: Final = logging.getLogger("asgi_agents")

#: How many bytes of an answer wait for a shadow agent. An answer that is judged as a whole is no longer than that.
MAX_WAITING_BYTES: Final = 1024 * 1024
# What each message counts beside its body.
_OVERHEAD: Final = 500
# Seconds beside the agent's timeout: a call that is too late has failed by then.
_MARGIN: Final = 0.1

_BODIES: Final = frozenset({"http.response.body", *BODY_BYPASSES})
#: What the log says of a request that can't be read, where nobody else judges it.
PASSED: Final = "passed, because only shadow agents judge it"
#: Makes what a shadow agent is to judge of a request.
Bodies = Callable[[JudgeSet], list[Body]]


class ShadowAsking(Asking):
    """Asks a shadow agent, for whom no text waits."""

    def __init__(self, asking: Asking) -> None:
        self._state = asking._state
        self.judges = asking.judges
        self.call = asking.call
        self._reports = asking._reports

    def count_held(self, judges: Sequence[RouteJudge], change: int) -> None:
        """Nothing is held."""

    def note_hold(self, judges: Sequence[RouteJudge], held: int, delay: float) -> None:
        """Nothing was held."""


class ShadowAnswer(TextAnswer):
    """An answer that only shadow agents judge, and that goes nowhere."""

    def limit(self, size: int) -> None:
        """Judge no whole answer that has more bytes."""
        self._max_bytes = size

    async def stop(self, stopped: Stopped) -> None:
        """Nobody is told."""
        self.abandon()

    async def _end(self, stopped: Stopped, last: bytes, cut_off: bool) -> None:
        self.abandon()


class ShadowText:
    """Has the shadow agents of a call judge copies of its text, beside the app.

    :param make_answer: takes the judges of an answer and who asks them, and returns it.
    :param bodies: None: there is nothing of the request to judge.
    """

    def __init__(
        self, asking: Asking, make_answer: Callable[[Asking, JudgeSet], ShadowAnswer], bodies: Bodies | None
    ) -> None:
        own = ShadowAsking(asking)
        self._shadows = [_Shadow(own, judges, make_answer(own, judges), bodies) for judges in asking.judges.shadows]
        # Whether the client has all of the answer.
        self._complete = False

    @property
    def judge_answers(self) -> bool:
        """Whether any of them judges answers to this call."""
        return any(shadow.judges_answers for shadow in self._shadows)

    def begin(self, tasks: TaskGroup) -> None:
        """The app begins to run."""
        for shadow in self._shadows:
            shadow.begin(tasks)

    def copying(self, send: Send) -> Send:
        """``send`` that keeps copies of what it is given for the shadow agents."""

        async def copied(message: Message) -> None:
            if message["type"] == "http.response.start":
                # They may be an iterator, which can be read once.
                message = {**message, "headers": list(message.get("headers", ()))}
            for shadow in self._shadows:
                shadow.add(message)
            await send(message)
            if message["type"] in _BODIES and not message.get("more_body", False):
                self._complete = True

        return copied

    async def finish(self) -> None:
        """Wait for what is still judged, no longer than each agent's timeout.

        Only where the client has its answer, so that it does not wait for this.
        """
        if not self._complete:
            return
        began = anyio.current_time()
        for shadow in self._shadows:
            if not shadow.idle:
                with anyio.CancelScope(deadline=began + shadow.timeout + _MARGIN):
                    await shadow.wait()

    def close(self) -> None:
        """The exchange is over: what was not judged by now is dropped."""
        for shadow in self._shadows:
            shadow.close()


class _Shadow:
    """One shadow agent."""

    def __init__(self, asking: Asking, judges: JudgeSet, answer: ShadowAnswer, bodies: Bodies | None) -> None:
        (self._judge,) = judges.all
        self._asking = asking
        self._judges = judges
        self._answer = answer
        answer.limit(MAX_WAITING_BYTES)
        self._bodies = bodies if judges.on(REQUEST_KINDS) else None
        self._backlog: Backlog[Message] = Backlog(MAX_WAITING_BYTES, _OVERHEAD)
        self._news = anyio.Event()
        # The app has begun to answer.
        self._answers = False
        # What is judged now.
        self._judging_request = self._judging_answer = False
        self._closed = False
        self.timeout = self._judge.agent.guard.config.timeout

    def begin(self, tasks: TaskGroup) -> None:
        if self._bodies is not None:
            self._judging_request = True
            tasks.start_soon(self._judge_request, self._bodies)
        if self.judges_answers:
            self._judging_answer = True
            self._answer.tasks = tasks
            tasks.start_soon(self._judge_answer)

    @property
    def judges_answers(self) -> bool:
        """Whether it judges answers to this call."""
        return self._answer.may_judge

    @property
    def idle(self) -> bool:
        """Whether nothing is judged."""
        return not (self._judging_request or self._judging_answer)

    def add(self, message: Message) -> None:
        """The app sends a message."""
        if not self._judging_answer:
            return
        if message["type"] == "http.response.start":
            if answer_form.is_binary(media_type(message["headers"])):
                self._end_answer()
                return
            self._answers = True
        body = bytes(message.get("body", b""))
        self._backlog.add({**message, "body": body} if body else {**message}, len(body))
        if self._backlog.dropped:
            self._asking.note_dropped(self._judge)
            self._end_answer()
        self._news.set()

    async def wait(self) -> None:
        """Until nothing is judged any more."""
        while not self.idle:
            await self._news_come()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._judging_request:
            self._asking.note_dropped(self._judge)
        if self._judging_answer:
            if self._answers:
                self._asking.note_dropped(self._judge)
            self._end_answer()
        self._judging_request = False

    async def _news_come(self) -> None:
        if self._news.is_set():
            self._news = anyio.Event()
        await self._news.wait()

    def _end_answer(self) -> None:
        self._judging_answer = False
        self._backlog.clear()
        self._answer.close()
        self._news.set()

    async def _judge_request(self, bodies: Bodies) -> None:
        try:
            for body in bodies(self._judges):
                await self._asking.judge_body(body)
        except UnreadableError as exc:
            fault = f"The request body can't be read: {exc}"
            self._asking.note_unreadable([self._judge], fault, PASSED)
        except Exception as exc:
            self._failed(exc)
        self._judging_request = False
        self._news.set()

    async def _judge_answer(self) -> None:
        try:
            while self._judging_answer and self._answer.judging:
                if not self._backlog:
                    await self._news_come()
                    continue
                await self._answer.send(self._backlog.take())
                # The app has its turn: nobody waits for this.
                await checkpoint()
        except ClosedByAgent:
            # There is nothing more to judge.
            pass
        except Exception as exc:
            self._failed(exc)
        if self._judging_answer:
            self._end_answer()

    def _failed(self, exc: Exception) -> None:
        """Nothing that is wrong with a copy stops the call. What was raised may quote the text."""
        name = type(exc).__name__
        logger.error("guardrails: a copy for the shadow agent %r was not judged: %s", self._judge.name, name)
        self._asking.note_dropped(self._judge)
