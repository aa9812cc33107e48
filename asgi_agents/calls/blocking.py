"""Hooks that block the event loop: one warning for each agent.

A *step* of a hook is what it does from one suspension to the next. Nothing else runs meanwhile: no other request, no
deadline, no cancellation. Steps are measured in wall time, because that is how long all other tasks wait: a hook that
sleeps or reads a file uses no processor time.
"""

import logging
import math
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Protocol, TypeVar

from ..agent import Agent
from ..messages.places import definition_of
from ..protocol import EventType

T = TypeVar("T")

#: Seconds. A step that takes longer is one that blocks.
LONGEST_STEP: Final = 0.05


class Called(Protocol):
    """How an agent is called."""

    @property
    def agent(self) -> Agent | None:
        """The agent, where it is in this process."""
        ...

    def function(self, event_type: EventType) -> object:
        """What is called for such an event."""
        ...


class Steps:
    """Warns of one agent's steps that take too long, once.

    ``on_configure`` is left out: it runs before the agent's first call, as a rule before the app serves anybody.

    :param agent_id: how the log names the agent.
    :param called: how it is reached. An agent that is not in this process blocks no event loop of ours: no warning.
    """

    def __init__(self, agent_id: str, called: Called, logger: logging.Logger) -> None:
        self._agent_id = agent_id
        self._logger = logger
        self._silent = called.agent is None
        #: The hook for an event; of an agent that has none here, the function that delivers the event.
        self.function = called.function

    def took(self, event_type: EventType, seconds: float) -> None:
        """Warn, if this is the first time, that a step of the hook took ``seconds``, more than :data:`LONGEST_STEP`."""
        if self._silent or event_type is EventType.CONFIGURE:
            return
        self._silent = True
        self._logger.warning(
            "agent %r blocked the event loop for %.3g s in one step of %s, and nothing else could run (wall time: a "
            "machine that is overloaded counts too); move what blocks to a thread: "
            "await anyio.to_thread.run_sync(function, argument) (logged once)",
            self._agent_id,
            seconds,
            definition_of(self.function(event_type)),
        )


@types.coroutine
def in_steps(
    call: Coroutine[Any, Any, T],
    steps: Steps,
    event_type: EventType,
    on_suspension: Callable[[], object] | None = None,
) -> Generator[Any, Any, T]:
    """Await ``call``, the hook for such an event, and measure each of its steps.

    ``on_suspension`` is called when it suspends for the first time, before anybody else runs.
    """
    began = time.monotonic()
    try:
        awaited = call.send(None)
        if on_suspension is not None:
            on_suspension()
        while True:
            if (seconds := time.monotonic() - began) > LONGEST_STEP:
                steps.took(event_type, seconds)
            # What passes while it is suspended is not its own.
            began = math.inf
            try:
                sent = yield awaited
            except GeneratorExit:
                call.close()
                raise
            except BaseException as exc:
                began = time.monotonic()
                awaited = call.throw(exc)
            else:
                began = time.monotonic()
                awaited = call.send(sent)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        if (seconds := time.monotonic() - began) > LONGEST_STEP:
            steps.took(event_type, seconds)
