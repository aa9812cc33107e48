"""Mistakes in files: each is one line that says where it is, what is there, and what is right."""

from pathlib import Path
from typing import Any

import pytest

from asgi_agents import Agent, AgentConfig, ConfigurationError, load
from asgi_agents.files.source import MAX_FILE_BYTES

from .writing import FORMATS, REMOTE, Teapot, loaded, refusal_of, text_in, write

MODULE = "tests.files.writing"


def one(**fields: Any) -> dict[str, Any]:
    return {"agents": [{**REMOTE, **fields}]}


TWO = [REMOTE, {**REMOTE, "id": "pii"}]
WORDS: dict[str, Any] = {"agents": [{"id": "words", "transport": f"{MODULE}:Words"}]}
#: The data, and the lines, each without the name of the file.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a misspelt key at the top": ({"agnets": [], **one()}, ["agnets: no such key; did you mean 'agents'?"]),
    "a misspelt key": (one(tiemout=3), ["agents[0].tiemout: no such key; did you mean 'timeout'?"]),
    "a key like none": (
        {"agents": [REMOTE], "guardrails": [{"allow": ["x"], "zzz": 1}]},
        ["guardrails[0].zzz: no such key; expected allow or deny"],
    ),
    "what only code can hold": ({**one(), "on_audit": "f"}, ["on_audit: no such key; {known}"]),
    "text for a number": (one(timeout="soon"), ["agents[0].timeout: found 'soon', expected a number"]),
    "a truth value for a number": (one(timeout=True), ["agents[0].timeout: found true, expected a number"]),
    "a negative number": (one(timeout=-1), ["agents[0].timeout: found -1, expected a number of seconds above 0"]),
    "half a call": (
        one(max_concurrent_calls=1.5),
        ["agents[0].max_concurrent_calls: found 1.5, expected a whole number"],
    ),
    "no call": (
        one(max_concurrent_calls=0),
        ["agents[0].max_concurrent_calls: found 0, expected a whole number of at least 1"],
    ),
    "text for a flag": (one(enforce="no"), ["agents[0].enforce: found 'no', expected true or false"]),
    "a failure mode like none": (
        one(failure_mode="opened"),
        ["agents[0].failure_mode: found 'opened', expected 'closed' or 'open'"],
    ),
    "false for what is not optional": (one(timeout=False), ["agents[0].timeout: found false, expected a number"]),
    "a table for a text": (one(id={"a": 1}), ["agents[0].id: found a table, expected text"]),
    "an id with a space": (
        one(id="a b"),
        ["agents[0].id: found 'a b', expected 1 to 128 letters, digits or any of !#$%&'*+-.^_`|~"],
    ),
    "no id": (
        {"agents": [{"transport": "tcp://127.0.0.1:9"}]},
        ["agents[0]: no id, expected text"],
    ),
    "no transport": (
        {"agents": [{"id": "waf"}]},
        ["agents[0]: no transport, expected text, a list of texts or a table with address, url, target or endpoints"],
    ),
    "no events": (
        {"agents": [{"id": "waf", "transport": "http://127.0.0.1:9"}]},
        ["agents[0]: no events, expected a list such as ['request_headers']"],
    ),
    "no events though the address is a variable": (
        {"agents": [{"id": "waf", "transport": "${WAF:-http://127.0.0.1:9}"}]},
        ["agents[0]: no events, expected a list such as ['request_headers']"],
    ),
    "events that are none": (
        one(transport="http://127.0.0.1:9", events=False),
        ["agents[0].events: found false, expected a list such as ['request_headers']"],
    ),
    "an event without a list": (
        one(events="request_headers"),
        [
            "agents[0].events: found 'request_headers', expected a list of 'configure', 'request_headers',"
            " 'request_body_chunk', 'response_headers', 'response_body_chunk', 'request_complete', 'websocket_frame' or"
            " 'guardrail_inspect'"
        ],
    ),
    "one agent without a list": ({"agents": REMOTE}, ["agents: found a table, expected a list of tables"]),
    "an agent that is a text": ({"agents": ["waf"]}, ["agents[0]: found 'waf', expected a table with id, transport"]),
    "a breaker that is a number": (
        one(circuit_breaker=5),
        [
            "agents[0].circuit_breaker: found 5, expected a table with failure_threshold,"
            " success_threshold, reset_timeout, or false for none"
        ],
    ),
    "a breaker with two mistakes": (
        one(circuit_breaker={"failure_threshold": 0, "failure_rate": 3}),
        [
            "agents[0].circuit_breaker.failure_threshold: found 0, expected a whole number of at least 1",
            "agents[0].circuit_breaker.failure_rate: found 3, expected a share above 0 and up to 1, such as 0.5,"
            " or false to open on failures in a row alone",
        ],
    ),
    "a body mode like none": (
        one(request_body_mode="whole"),
        ["agents[0].request_body_mode: found 'whole', expected 'buffer', 'stream' or 'hybrid' or a table with name"],
    ),
    "a body mode without its name": (
        one(request_body_mode={"threshold": 1}),
        ["agents[0].request_body_mode: no name, expected 'buffer', 'stream' or 'hybrid'"],
    ),
    "an address without a scheme": (
        one(transport="127.0.0.1:9"),
        ["agents[0].transport: found '127.0.0.1:9', expected tcp://127.0.0.1:9 or http://127.0.0.1:9/"],
    ),
    "a table of no transport": (
        one(transport={"uri": "http://127.0.0.1"}),
        [
            "agents[0].transport.uri: no such key; {known}",
            "agents[0].transport: no endpoints, expected text or a list of texts",
        ],
    ),
    "an unsafe header": (
        one(transport={"url": "http://127.0.0.1", "headers": {"content-length": "1"}}),
        ["agents[0].transport.headers: {any}"],
    ),
    "several mistakes of one agent": (
        one(timeout=-1, chunk_timeout="x", decode=1, body_access="all", after=["x", 3]),
        [
            "agents[0].chunk_timeout: found 'x', expected a number",
            "agents[0].decode: found 1, expected true or false",
            "agents[0].body_access: found 'all', expected 'read' or 'write'",
            "agents[0].after[1]: found 3, expected text",
            "agents[0].timeout: found -1, expected a number of seconds above 0",
        ],
    ),
    "the same id twice": (
        {"agents": [REMOTE, REMOTE]},
        ["agents[1].id: two agents have the id 'waf', expected each to be unique"],
    ),
    "after an agent that there is not": (
        one(after=["waff"]),
        ["agents[0].after[0]: 'waff' is no agent; did you mean 'waf'?"],
    ),
    "after itself": (one(after=["waf"]), ["agents[0].after: contains 'waf', expected other agents than itself"]),
    "a cycle": (
        {"agents": [{**REMOTE, "after": ["pii"]}, {**REMOTE, "id": "pii", "after": ["waf"]}]},
        ["after makes a cycle, expected none: {any}"],
    ),
    "a default agent that there is not": (
        {**one(), "default_agents": ["waff"]},
        ["default_agents[0]: 'waff' is no agent; did you mean 'waf'?"],
    ),
    "a default agent twice": (
        {**one(), "default_agents": "waf"},
        ["default_agents: found 'waf', expected a list of texts or a pair such as ['waf', 'open']"],
    ),
    "a default agent in a list twice": (
        {**one(), "default_agents": ["waf", ["waf", "open"]]},
        ["default_agents: contains 'waf' more than once, expected each agent once"],
    ),
    "an action for an agent that says itself what to do": (
        {**WORDS, "guardrails": [{"deny": ["x"]}, {"agent_id": "words", "on": ["input"], "action": "block"}]},
        ["guardrails[1].action: found 'block', expected none: Words.check says itself what to do"],
    ),
    "categories for an agent that says itself what to do, on a route": (
        {
            **WORDS,
            "routes": [
                {"path": "/a", "agents": []},
                {
                    "path": "/b",
                    "agents": [],
                    "guardrails": [{"agent_id": "words", "on": ["input"], "categories": ["email"]}],
                },
            ],
        },
        ["routes[1].guardrails[0].categories: found a list, expected none: Words.check says itself what to do"],
    ),
    "a guardrail whose agent judges no text": (
        {**one(), "guardrails": [{"agent_id": "waf", "on": ["input"]}]},
        ["guardrails[0]: agent 'waf' does not receive guardrail_inspect; {any}"],
    ),
    "a guardrail that redacts what the app has already": (
        {**one(events=["guardrail_inspect"]), "guardrails": [{"agent_id": "waf", "on": ["input"], "overlap": True}]},
        ["guardrails[0].overlap: {any}"],
    ),
    "a window that is no longer than what is held": (
        {**WORDS, "guardrails": [{"agent_id": "words", "on": ["input"], "window": 5}]},
        ["guardrails[0].window: {any}"],
    ),
    "a route to an agent that there is not": (
        {"agents": TWO, "routes": [{"path": "/", "agents": ["waf", ["pi", "open"]]}]},
        ["routes[0].agents[1]: 'pi' is no agent; did you mean 'pii'?"],
    ),
    "a route with an agent twice": (
        {"agents": TWO, "routes": [{"path": "/", "agents": ["waf", ["waf", "open"]]}]},
        ["routes[0].agents: contains 'waf' more than once, expected each agent once"],
    ),
    "a route with a pattern of others": (
        {**one(), "routes": [{"path": "/api/*", "agents": ["waf"]}]},
        ["routes[0].path: {any}"],
    ),
    "a route with a wrong failure mode": (
        {**one(), "routes": [{"path": "/", "agents": [["waf", "maybe"]]}]},
        ["routes[0].agents[0][1]: found 'maybe', expected 'closed' or 'open'"],
    ),
    "a route with a failure mode outside of a pair": (
        {**one(), "routes": [{"path": "/", "agents": ["waf", "open"]}]},
        ["routes[0].agents[1]: 'open' is no agent; did you mean the pair ['waf', 'open']?"],
    ),
    "default agents with a failure mode outside of a pair": (
        {"agents": TWO, "default_agents": ["waf", "pii", "closed"]},
        ["default_agents[2]: 'closed' is no agent; did you mean the pair ['pii', 'closed']?"],
    ),
    "a route with a failure mode and no agent": (
        {**one(), "routes": [{"path": "/", "agents": ["open"]}]},
        ["routes[0].agents[0]: 'open' is no agent; expected waf"],
    ),
    "a route without agents": (
        {**one(), "routes": [{"path": "/"}]},
        ["routes[0]: no agents, expected a list of texts or a pair such as ['waf', 'open']"],
    ),
    "a guardrail of no agent": (
        {**one(), "guardrails": [{"agent_id": "waff", "on": ["input"]}]},
        ["guardrails[0].agent_id: 'waff' is no agent; did you mean 'waf'?"],
    ),
    "a guardrail of a route, of no agent": (
        {**one(), "routes": [{"path": "/", "agents": [], "guardrails": [{"agent_id": "x", "on": ["input"]}]}]},
        ["routes[0].guardrails[0].agent_id: 'x' is no agent; expected waf"],
    ),
    "a guardrail whose agent has another key": (
        {**one(), "guardrails": [{"agent": "waf", "on": ["input"]}]},
        [
            "guardrails[0].agent: no such key; did you mean 'agent_id'?",
            "guardrails[0]: no agent_id, expected text",
        ],
    ),
    "a guardrail without an agent": (
        {**one(), "guardrails": [{"on": ["input"], "action": "block"}]},
        ["guardrails[0]: no agent_id, expected text"],
    ),
    "a policy with a misspelt key": (
        {**one(), "guardrails": [{"denny": ["rm"]}]},
        ["guardrails[0].denny: no such key; did you mean 'deny'?", "guardrails[0]: neither allow nor deny, {any}"],
    ),
    "a transport with the address under another key": (
        {
            "agents": [
                {
                    "id": "waf",
                    "transport": {"uri": "https://waf/", "headers": {"a": "b"}},
                    "events": ["request_headers"],
                }
            ]
        },
        [
            "agents[0].transport.uri: no such key; did you mean 'url'?",
            "agents[0].transport: no url, expected text",
        ],
    ),
    "a guardrail on nothing": (
        {**one(), "guardrails": [{"agent_id": "waf", "on": []}]},
        ["guardrails[0].on: is empty, {any}"],
    ),
    "a guardrail on what there is not": (
        {**one(), "guardrails": [{"agent_id": "waf", "on": ["out"]}]},
        ["guardrails[0].on[0]: found 'out', expected 'input', 'output', 'tool_call', 'tool_result' or 'reasoning'"],
    ),
    "a policy without a rule": (
        {**one(), "guardrails": [{}]},
        ["guardrails[0]: neither allow nor deny, expected rules such as deny=['delete_*']"],
    ),
    "settings that the middleware refuses": (
        {**one(), "stop_grace": -1, "state_key": "a b", "correlation_header": "", "audit_headers": ["a b"]},
        [
            "stop_grace: found -1, expected a number of seconds from 0 to {any}",
            "correlation_header: found '', expected the name of a header or false",
            "audit_headers: contains 'a b', expected names of headers",
            "state_key: found 'a b', expected an identifier such as 'agents', or false for no second name",
        ],
    ),
    "a module that can't be imported": (
        one(transport="tests.files.nowhere:Waf"),
        ["agents[0].transport: 'tests.files.nowhere' can't be imported: ModuleNotFoundError: {any}"],
    ),
    "a key of several lines": (one(**{"a\nb": 1, "c d": 1}), ["agents[0].'a\\nb': {any}", "agents[0].'c d': {any}"]),
    "no agents at all": ({"stop_grace": 1}, ["neither agents nor guardrails, expected [[agents]]"]),
    "a module that may not be named": (
        one(transport="os:system"),
        [f"agents[0].transport: a file may not name the module 'os', expected one of tests.files.nowhere or {MODULE}"],
    ),
    "an object of a module behind a dot": (
        one(transport=f"{MODULE}.Teapot"),
        [f"agents[0].transport: found '{MODULE}.Teapot', expected '{MODULE}:Teapot'"],
    ),
    "a class behind a dot, of a module that may not be named": (
        one(transport="shop_agents.Waf"),
        ["agents[0].transport: found 'shop_agents.Waf', expected 'shop_agents:Waf'"],
    ),
    "a host without a scheme": (
        one(transport="waf.internal"),
        [
            "agents[0].transport: found 'waf.internal', expected an http://, https://, unix://, tcp://, grpc://,"
            " grpcs://, grpc+unix:// or ray:// URL, or an agent as 'module:Name'"
        ],
    ),
    "an object that there is not": (
        one(transport=f"{MODULE}:Teapt"),
        [f"agents[0].transport: '{MODULE}' has no 'Teapt'; did you mean 'Teapot'?"],
    ),
    "an object that is no agent": (
        one(transport=f"{MODULE}:NUMBER"),
        [
            f"agents[0].transport: 'NUMBER' of '{MODULE}' is of type int, expected an Agent, a class of agents or a"
            " Transport"
        ],
    ),
    "a function": (
        one(transport=f"{MODULE}:write"),
        [
            f"agents[0].transport: 'write' of '{MODULE}' is of type function, expected an Agent, a class of agents or a"
            " Transport"
        ],
    ),
    "a class with arguments": (
        one(transport=f"{MODULE}:Choosy"),
        [
            f"agents[0].transport: Choosy() of '{MODULE}' has raised TypeError: {{any}}; expected a"
            f" class that takes no arguments"
        ],
    ),
    "the class of all agents": (
        one(transport=f"{MODULE}:Agent"),
        [f"agents[0].transport: 'Agent' of '{MODULE}' is of type type, {{any}}"],
    ),
}


def is_like(line: str, expected: str) -> bool:
    """Whether the line is that; ``{any}`` stands for any text, and ``{known}`` for all that is known there."""
    for mark in ("{any}", "{known}"):
        if mark in expected:
            begin, _, end = expected.partition(mark)
            return line.startswith(begin) and line.endswith(end) and len(line) > len(begin) + len(end)
    return line == expected.replace("{{", "{").replace("}}", "}")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, suffix: str, case: str) -> None:
    data, expected = MISTAKES[case]
    lines = refusal_of(tmp_path, data, suffix, imports=[MODULE, "tests.files.nowhere"])
    shown = []
    for line in lines:
        file, _, text = line.partition(": ")
        # Of the three parsers, that of YAML tells where values stand.
        assert file.partition(":")[0] == f"agents.{suffix}"
        assert file.partition(":")[2].isdecimal() or suffix != "yaml" or file == "agents.yaml"
        shown.append(text)
    assert len(shown) == len(expected), shown
    if suffix != "yaml":
        assert all(map(is_like, shown, expected)), shown
    else:
        # From the top of the file to its end.
        assert all(any(is_like(line, text) for line in shown) for text in expected), shown


def test_yaml_says_the_line_of_each_mistake(tmp_path: Path) -> None:
    text = """\
agents:
  - id: waf
    transport: tcp://127.0.0.1:9
    circuit_breaker:
      failure_threshold: 0
    timeout: -1
    tiemout: 3
    after:
      - waf
      - 5
"""
    assert [line.split(" ")[0] for line in refusal_of(tmp_path, text, "yaml")] == [
        "agents.yaml:5:",
        "agents.yaml:6:",
        "agents.yaml:7:",
        "agents.yaml:10:",
    ]


#: Files that can't be read, by suffix: the text, and the line.
UNREADABLE: list[tuple[str, str, str]] = [
    ("toml", "", "agents.toml: the file is empty, expected agents, routes or guardrails in it"),
    ("yaml", "  \n", "agents.yaml: the file is empty, expected agents, routes or guardrails in it"),
    ("yaml", "# later", "agents.yaml: a NoneType, expected a table with keys such as agents"),
    ("json", "[]", "agents.json: a list, expected a table with keys such as agents"),
    ("toml", "a = 1\nb = \n", "agents.toml: no TOML: {any}line 2{any}"),
    ("toml", "a = 1\na = 2\n", "agents.toml: no TOML: {any}line 2{any}"),
    ("json", '{"a": 1,\n "b" 2}', "agents.json:2: no JSON: Expecting ':' delimiter (column 6)"),
    ("json", '{"a": 1, "a": 2}', "agents.json: the key 'a' is there twice in one object, expected each once"),
    ("json", '{"a": NaN}', "agents.json: not readable: NaN is no JSON"),
    ("json", f'{{"a": {"9" * 5000}}}', "agents.json: not readable: {any}"),
    ("json", '{"agents": [{"config": ' + "[" * 900 + "]" * 900 + "}]}", "{any}"),
    ("yaml", "agents: [{config: " + "[" * 400 + "]" * 400 + "}]", "{any}"),
    ("json", '{"a":' * 100_000, "agents.json: nested too deeply"),
    ("yaml", "a: 1\nb: [", "agents.yaml:2: no YAML: {any}"),
    ("yaml", "a: 1\na: 2\n", "agents.yaml:2: the key 'a' is there twice, expected each once"),
    ("yaml", "a: !!python/object/apply:os.system ['x']\n", "{any}"),
    ("yaml", "a: !!python/name:os.system x\n", "agents.yaml:1: no YAML: could not determine a constructor {any}"),
    ("yaml", "a: &x [*x]\n", "agents.yaml:1: a value that is part of itself"),
    ("yaml", "a: &x\n  <<: *x\n", "agents.yaml:1: a: no such key; {any}"),
    ("yaml", "a: {[1]: 2}\n", "agents.yaml:1: a key that is no text"),
    ("yaml", "a: 1\n---\nb: 2\n", "agents.yaml:2: no YAML: {any}"),
    ("yaml", "a: 2001-99-99\n", "agents.yaml:1: a value that is no timestamp"),
    (
        "yaml",
        "a: 1:30\n",
        "agents.yaml:1: '1:30' is a number to the base of 60 in YAML 1.1, expected decimals or quotes",
    ),
    ("yaml", "a: 1:30.5\n", "agents.yaml:1: '1:30.5' is a number to the base of 60 in YAML 1.1, expected {any}"),
    ("yaml", f"a: 1{':59' * 300}.5\n", "agents.yaml:1: {any} is a number to the base of 60 in YAML 1.1, {any}"),
    ("yaml", "a: 010\n", "agents.yaml:1: '010' is a number to the base of 8 in YAML 1.1, expected decimals or quotes"),
    ("yaml", "a: !!float x\n", "agents.yaml:1: a value that is no float"),
    ("yaml", f"a: {'9' * 5000}\n", "agents.yaml:1: a value that is no int"),
    ("yaml", "a: \x01\n", "agents.yaml: no YAML: ReaderError"),
]


@pytest.mark.parametrize(("suffix", "text", "expected"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_file_that_can_not_be_read_is_refused_in_one_line(
    tmp_path: Path, suffix: str, text: str, expected: str
) -> None:
    [line] = refusal_of(tmp_path, text, suffix)
    at = 0
    for part in expected.split("{any}"):
        at = line.find(part, at)
        assert at >= 0, line


def test_references_of_yaml_multiply_within_bounds(tmp_path: Path) -> None:
    text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"b{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
    )
    [line] = refusal_of(tmp_path, text, "yaml")
    assert line.endswith("more than 100000 values, references counted")


def test_a_file_that_is_not_there_and_one_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: No such file or directory, expected a file"):
        load(tmp_path / "nowhere.toml")
    (tmp_path / "agents.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"agents\.toml: Is a directory"):
        load(tmp_path / "agents.toml")
    path = write(tmp_path, "#" * (MAX_FILE_BYTES + 1), "json")
    with pytest.raises(ConfigurationError, match=r"agents\.json: longer than expected: at most 1048576 bytes"):
        load(path)


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigurationError, match=r"agents\.toml:2: not in UTF-8"):
        load(path)


@pytest.mark.parametrize("name", ["agents", "agents.ini", "agents.toml.bak", "toml"])
def test_a_suffix_says_what_a_file_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(text_in("toml", one()))
    with pytest.raises(ConfigurationError, match=r"expected a name that ends in \.toml, \.yaml, \.yml, \.json"):
        load(tmp_path / name)


def test_yaml_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    [line] = refusal_of(tmp_path, one(), "yaml")
    assert line == "agents.yaml: needs pyyaml, which is not installed; expected pip install 'asgi-agents[yaml]'"


def test_no_more_than_fifty_mistakes_are_shown(tmp_path: Path) -> None:
    lines = refusal_of(tmp_path, {f"key{number}": 1 for number in range(60)} | one())
    assert len(lines) == 51
    assert lines[-1] == "agents.toml: 10 other mistakes"


class Broken(Agent):
    async def on_request_headers(self, event: object) -> None: ...


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"agents": [Teapot()]}, "load: agents contains a Teapot, expected AgentConfig(id, transport)"),
        ({"agents": "waf"}, "load: agents='waf', expected a list of AgentConfig"),
        ({"imports": "os"}, "load: imports='os', expected a list of names of modules"),
        ({"guardrails": ["pii"]}, "load: guardrails contains 'pii', expected objects of Guardrail"),
        ({"agents": [AgentConfig("waf", Teapot())]}, "two agents have the id 'waf', expected each to be unique"),
    ],
)
def test_what_is_given_beside_a_file_is_checked(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, one(), **options)
    assert expected in str(caught.value)


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="load: path=5, expected the path of a file"):
        load(5)  # type: ignore[arg-type]
