"""Which calls of tools a policy denies, and what it leaves of a list of tools."""

import json
from typing import Any, cast

import pytest

from asgi_agents.errors import ConfigurationError
from asgi_agents.guardrails import ToolPolicy, ToolRule
from asgi_agents.guardrails.framing import UnreadableError
from asgi_agents.guardrails.tool_listing import without_tools
from asgi_agents.guardrails.tool_policy import denial_of


def removes(arguments: Any) -> bool:
    return "rm " in arguments["command"]


async def later(arguments: Any) -> bool:
    return False


def call(name: Any = "send", arguments: Any = None, **more: Any) -> dict[str, Any]:
    params = {"name": name, **({} if arguments is None else {"arguments": arguments})}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **more}


def denied(policy: ToolPolicy, name: str, arguments: Any = None) -> bool:
    return policy.denial(name, arguments or {}) is not None


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("send", ["send"], ["Send", "send ", "sends", "", "resend"]),
        ("delete_*", ["delete_", "delete_x", "delete_x\ny"], ["delete", "Delete_x", " delete_x"]),
        ("*_user", ["get_user", "_user"], ["get_users", "user"]),
        ("*", ["", "x"], []),
        ("a*b*c", ["abc", "a1b2c", "abbc", "abcbc"], ["ac", "acb", "ab"]),
        ("a*a", ["aa", "aba"], ["a"]),
        ("**x**", ["x", "axb"], ["", "y"]),
        # Only the star is more than itself.
        ("a?[b].c", ["a?[b].c"], ["axb.c", "a?[b]xc", "ab"]),
    ],
)
def test_patterns(pattern: str, names: list[str], others: list[str]) -> None:
    rule = ToolRule(pattern)
    assert [name for name in [*names, *others] if rule.names(name)] == names


def test_deny_wins_and_an_empty_allow_denies_all() -> None:
    both = ToolPolicy(allow=["get_*", "delete_*"], deny=["delete_*"])
    assert not denied(both, "get_x")
    assert denied(both, "delete_x")
    assert denied(both, "put_x")
    assert denied(ToolPolicy(allow=[]), "anything")
    assert not denied(ToolPolicy(deny=["x"]), "anything")


def test_rules_look_at_arguments() -> None:
    policy = ToolPolicy(deny=[("shell", removes)])
    assert denied(policy, "shell", {"command": "rm -rf /"})
    assert not denied(policy, "shell", {"command": "ls"})
    assert not denied(policy, "other", {})
    allowing = ToolPolicy(allow=[ToolRule("shell", lambda arguments: arguments["command"] == "ls"), "say"])
    assert not denied(allowing, "shell", {"command": "ls"})
    assert denied(allowing, "shell", {"command": "rm"})


@pytest.mark.parametrize("field", ["allow", "deny"])
@pytest.mark.parametrize("when", [removes, lambda arguments: later(arguments)])
def test_what_raises_denies(field: str, when: Any) -> None:
    denial = ToolPolicy(**{field: [ToolRule("shell", when)]}).denial("shell", {})
    assert denial is not None
    assert isinstance(denial.error, KeyError | TypeError)
    assert denial.rule is not None


def test_another_rule_may_still_allow_what_one_has_raised_for() -> None:
    assert not denied(ToolPolicy(allow=[("shell", removes), "shell"]), "shell", {})


def test_the_reason_is_the_rules_own() -> None:
    denial = ToolPolicy(deny=[ToolRule("x", reason="ask an admin")]).denial("x", {})
    assert denial is not None
    assert denial.reason == "ask an admin"
    denial = ToolPolicy(deny=["*"]).denial("n" * 5000, {})
    assert denial is not None
    assert len(denial.reason) < 300


def test_a_tool_is_hidden_if_no_call_of_it_can_pass() -> None:
    policy = ToolPolicy(allow=["get_*", ("shell", removes)], deny=["get_secret", ("get_x", removes)])
    names = ["get_a", "get_secret", "get_x", "shell", "put"]
    assert [name for name in names if policy.hides(name)] == ["get_secret", "put"]


POLICIES = [ToolPolicy(deny=["delete_*"]), ToolPolicy(allow=["delete_*", "send"])]


@pytest.mark.parametrize(
    ("value", "duplicates", "expected"),
    [
        (call("send"), False, False),
        (call("send", {}), False, False),
        (call("delete_x"), False, True),
        # The other policy has a say as well.
        (call("get_x"), False, True),
        ([call("send"), call("delete_x")], False, True),
        ([1, None, call("delete_x")], False, True),
        ([1, None, [call("delete_x")]], False, True),
        ([[call("send")]], False, True),
        # Servers may be lenient: about the version, an id, and the rest.
        ({"method": "tools/call", "params": {"name": "delete_x"}}, False, True),
        # What can't be checked.
        (call(7), False, True),
        ({"jsonrpc": "2.0", "method": "tools/call"}, False, True),
        ({"jsonrpc": "2.0", "method": "tools/call", "params": ["delete_x"]}, False, True),
        (call("send", ["delete"]), False, True),
        (call("send"), True, True),
        ({"jsonrpc": "2.0", "method": "ping", "id": 1}, True, True),
        # No calls.
        ({"a": 1}, True, False),
        ({"method": "Tools/Call", "params": {"name": "delete_x"}}, False, False),
        ({"jsonrpc": "2.0", "id": 1, "result": {"method": "tools/call"}}, False, False),
        ("tools/call", False, False),
    ],
)
def test_what_is_denied_of_a_body(value: Any, duplicates: bool, expected: bool) -> None:
    assert (denial_of(POLICIES, value, duplicates=duplicates) is not None) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToolPolicy(), "neither allow nor deny"),
        (lambda: ToolPolicy(deny="delete_*"), "expected a list"),
        (lambda: ToolPolicy(allow=cast(Any, 7)), "expected a list of names"),
        (lambda: ToolPolicy(deny=[cast(Any, 7)]), "deny contains 7"),
        (lambda: ToolPolicy(deny=[("a", cast(Any, None))]), "expected 'a' alone"),
        (lambda: ToolPolicy(deny=[("a", later)]), "expected a 'def'"),
        (lambda: ToolRule("a", cast(Any, "b")), "expected a 'def'"),
        (lambda: ToolRule(""), "expected the name of a tool"),
        (lambda: ToolRule("a", reason=cast(Any, 7)), "expected text"),
    ],
)
def test_what_can_not_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def hides(name: str) -> bool:
    return name.startswith("delete_")


def listed(*names: str, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": name} for name in names], **more}}


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["delete_a", "b", "delete_c"], ["b"]),
        (["a", "delete_b"], ["a"]),
        (["delete_a"], []),
        (["delete_a", "delete_b"], []),
        (["a", "delete_b", "delete_c", "d"], ["a", "d"]),
        (["a"], ["a"]),
        ([], []),
    ],
)
def test_a_list_loses_tools_and_nothing_else(names: list[str], left: list[str]) -> None:
    for indent in (None, 2):
        data = json.dumps(listed(*names, nextCursor="x \u00e9"), indent=indent).encode()
        after, count = without_tools(data, hides)
        assert json.loads(after) == listed(*left, nextCursor="x \u00e9")
        assert count == len(names) - len(left)
        if not count:
            assert after is data


def test_lists_in_batches_and_behind_escapes_are_found() -> None:
    after, count = without_tools(json.dumps([{"a": 1}, listed("delete_x", "y")]).encode(), hides)
    assert json.loads(after) == [{"a": 1}, listed("y")]
    assert count == 1
    escaped = json.dumps(listed("delete_x")).replace('"tools"', '"\\u0074ools"').encode()
    assert without_tools(escaped, hides)[1] == 1


@pytest.mark.parametrize("data", [b'"tools', b'{"tools": [{"name": "delete_x"}]}', b'{"result": {"tools": 7}}', b""])
def test_what_is_no_list_stays(data: bytes) -> None:
    assert without_tools(data, hides) == (data, 0)


def test_a_list_that_others_may_read_otherwise_is_refused() -> None:
    data = b'{"result": {"tools": [{"name": "a"}], "tools": [{"name": "delete_x"}]}}'
    with pytest.raises(UnreadableError, match="twice"):
        without_tools(data, hides)
