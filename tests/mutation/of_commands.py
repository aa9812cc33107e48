"""Defects in the command line: what it finds, what it prints, and its exit codes."""

from typing import Final

from .defect import Defect

COMMANDS: Final = (
    Defect(
        "unguarded-endpoints-are-no-finding",
        "commands/check.py",
        "        if endpoint.guarded is False:\n",
        "        if endpoint.guarded is None and endpoint.guarded is False:\n",
        "In CI, an endpoint that somebody has forgotten to guard passes --fail-unguarded.",
        ("tests/commands/test_check.py",),
    ),
    Defect(
        "shadow-agents-guard",
        "commands/report.py",
        "agent.enforced and any(EventType(event) not in _NO_GUARD",
        "any(EventType(event) not in _NO_GUARD",
        "An endpoint that only a shadow agent watches is said to be guarded.",
        ("tests/commands/test_check.py",),
    ),
    Defect(
        "findings-are-exit-code-0",
        "commands/check.py",
        "    return FOUND if report.findings else WELL\n",
        "    return WELL\n",
        "In CI, no finding of check fails a build.",
        ("tests/commands/test_check.py",),
    ),
    Defect(
        "factories-are-taken-for-apps",
        "commands/check.py",
        "    except TypeError:\n        return True\n    return False\n",
        "    except TypeError:\n        return False\n    return False\n",
        "A function that makes an app is checked as if it was one, and has no agents.",
        ("tests/commands/test_hostile_answers.py",),
    ),
    Defect(
        "agents-that-fail-have-answered",
        "commands/call.py",
        "    if any(one.failure is not None for one in report.calls):\n",
        "    if not report.calls:\n",
        "The exit code of call is the same for an agent that is down as for one that blocks.",
        ("tests/commands/test_call.py",),
    ),
    Defect(
        "requests-that-were-stopped-go-on",
        "commands/call.py",
        '            if outcome != "allow" and not is_end:\n',
        '            if outcome == "close" and not is_end:\n',
        "An agent is asked about the body of a request that it has blocked.",
        ("tests/commands/test_call.py",),
    ),
    Defect(
        "answers-are-printed-with-their-secrets",
        "commands/call.py",
        "        answer = without_secrets(answer)\n",
        "        pass\n",
        "Credentials that an agent sets are in the output of call.",
        ("tests/commands/test_call.py", "tests/commands/test_hostile_answers.py"),
    ),
    Defect(
        "failed-calls-are-as-good-as-others",
        "commands/bench.py",
        "    return FOUND if report.failed else WELL\n",
        "    return WELL\n",
        "The exit code of bench is 0 although half of the calls have failed.",
        ("tests/commands/test_bench.py",),
    ),
    Defect(
        "wrong-arguments-are-not-said-in-json",
        "commands/command_line.py",
        "            code = _give_up(exc.command, str(exc), as_json=as_json)\n",
        "            code = _give_up(exc.command, str(exc), as_json=False)\n",
        "A program that reads the JSON of a command gets nothing where an argument is wrong.",
        ("tests/commands/test_hostile_answers.py",),
    ),
    Defect(
        "what-an-agent-prints-is-in-the-report",
        "commands/replay.py",
        "    with captured_log(), printing_aside():\n",
        "    with captured_log():\n",
        "The JSON of replay is broken by an agent that prints.",
        ("tests/recording/test_command.py",),
    ),
    Defect(
        "nothing-compared-is-exit-code-0",
        "commands/replay.py",
        "    return WELL if report.ok else IMPOSSIBLE\n",
        "    return WELL\n",
        "A replay that has compared nothing says that all is well.",
        ("tests/recording/test_command.py",),
    ),
    Defect(
        "control-characters-are-printed",
        "terminal/output.py",
        '        shown = [(escaped(part), "") if isinstance(part, str)',
        '        shown = [(part, "") if isinstance(part, str)',
        "An agent's answer clears the screen of whoever asks it.",
        ("tests/commands/test_hostile_answers.py",),
    ),
)
