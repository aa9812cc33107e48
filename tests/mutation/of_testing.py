"""Defects in the test kit: what tests with it would show wrongly."""

from typing import Final

from .defect import Defect

TESTING: Final = (
    Defect(
        "scripts-begin-again",
        "testing/fake_agent.py",
        "script[min(asked, len(script) - 1)]",
        "script[asked % len(script)]",
        "A fake that blocks all but the first request lets the third pass.",
        ("tests/testing/test_fake_agent.py",),
    ),
    Defect(
        "fakes-are-never-late",
        "testing/fake_agent.py",
        "            await _wait(self._delay)\n",
        "            pass\n",
        "A test of a deadline passes the agent that is to be late.",
        ("tests/testing/test_fake_agent.py", "tests/testing/test_virtual_time.py"),
    ),
    Defect(
        "inner-overrides-take-the-outer-away",
        "testing/overriding.py",
        "            registry.put(layers[-1])\n",
        "            registry.put(layers[0])\n",
        "After an inner override has ended, the agent itself is asked instead of the fake around.",
        ("tests/testing/test_overriding.py",),
    ),
    Defect(
        "overrides-undo-what-the-app-has-done",
        "testing/overriding.py",
        "        if layers and registry.find(agent_id) is not layers[-1]:\n",
        "        if False:\n",
        "After an override, the agent of the file of before a reload is asked again.",
        ("tests/testing/test_changed_meanwhile.py",),
    ),
    Defect(
        "fakes-receive-what-the-agent-does-not",
        "testing/overriding.py",
        "        events, wanted = own.hears & agent.events, ",
        "        events, wanted = agent.events, ",
        "A fake is shown bodies that the agent in production never is.",
        ("tests/testing/test_overriding.py",),
    ),
    Defect(
        "open-breakers-close-with-time",
        "testing/overriding.py",
        "_made(registry, config, clock=lambda: now)",
        "_made(registry, config)",
        "In a test that takes longer than reset_timeout, breaker_open holds no longer.",
        ("tests/testing/test_down.py",),
    ),
    Defect(
        "agents-that-are-down-answer-nothing-but-allow",
        "testing/overriding.py",
        '        raise AgentConnectionError("connection refused, as the test wants it")\n',
        "        return None\n",
        "A test shows that the app goes on without an agent, which was never down.",
        ("tests/testing/test_down.py",),
    ),
    Defect(
        "what-went-wrong-within-is-not-put-back",
        "testing/overriding.py",
        "            changed.callback(_LAYERS.take_away, registry, guard)\n        yield recording\n",
        "            pass\n        yield recording\n        for one in guards:\n            _LAYERS.take_away(*one)\n",
        "After a test has failed, the next one has its fakes.",
        ("tests/testing/test_overriding.py",),
    ),
    Defect(
        "failing-is-blocking",
        "testing/asserting.py",
        "        if record.decided_by == agent_id and not _failed(record):\n",
        "        if record.decided_by == agent_id:\n",
        "A test says that an agent blocks, and the agent was down.",
        ("tests/testing/test_asserting.py",),
    ),
    Defect(
        "apps-are-recorded-for-ever",
        "testing/recording.py",
        "                recordings.remove(recording)\n                if not recordings:\n",
        "                recordings.remove(recording)\n                if recordings:\n",
        "After a test, responses still carry the header that says they were recorded.",
        ("tests/testing/test_recording.py", "tests/testing/test_overriding.py"),
    ),
    Defect(
        "time-stays-virtual",
        "testing/virtual_time.py",
        "                if not self._times:\n                    time.monotonic",
        "                if self._times:\n                    time.monotonic",
        "After a test in virtual time, others go by functions that it has left behind.",
        ("tests/testing/test_virtual_time.py",),
    ),
)
