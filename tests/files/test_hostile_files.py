"""Files that are no files, that grow when they are read, or whose variables are no text."""

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from asgi_agents import ConfigurationError, load, protect
from asgi_agents.files.watch import FileWatch

from .writing import REMOTE, loaded, refusal_of

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe", "link to itself"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "agents.toml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        case _:
            path.symlink_to(path)
    with pytest.raises(ConfigurationError, match=r"agents\.toml: .*, expected a file that can be read"):
        load(path)
    # A look that waited for a writer would keep the app from ending.
    watch = FileWatch(path, lambda: b"before")
    assert [watch.look(), watch.look(), watch.look()] == [False, True, False]


def test_a_path_with_a_null_character_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no path of a file"):
        load("agents\0.toml")


THOUSAND_KEYS = ", ".join(f"k{number}: 1" for number in range(1000))
MERGES = ", ".join(["{<<: *a}"] * 1000)
#: Tables that `<<` makes long.
LONG_MERGES: dict[str, str] = {
    "tables within each other": f"a: &a {{{THOUSAND_KEYS}}}\nb: {{<<: [{MERGES}]}}\n",
    "in a list": f"a: &a {{{THOUSAND_KEYS}}}\nb: [{MERGES}]\n",
}


@pytest.mark.parametrize("case", LONG_MERGES)
def test_merges_of_yaml_multiply_within_bounds(tmp_path: Path, case: str) -> None:
    lines = refusal_of(tmp_path, LONG_MERGES[case], "yaml")
    assert lines[0].endswith("more than 100000 values, references counted"), lines


def test_merges_of_yaml_hold(tmp_path: Path) -> None:
    text = """\
agents:
- &first {id: waf, transport: "tcp://127.0.0.1:9", events: [request_headers], timeout: 2}
- {<<: [*first, {timeout: 3, chunk_timeout: 4}], id: pii}
"""
    waf, pii = loaded(tmp_path, text, "yaml").agents
    assert (waf.timeout, pii.id, pii.timeout, pii.chunk_timeout) == (2, "pii", 2, 4)


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp later", "!!int ''", "!!float ''", "!!int x", "!foo x"])
def test_a_value_that_is_not_what_its_tag_says_is_refused(tmp_path: Path, value: str) -> None:
    [line] = refusal_of(tmp_path, f"agents: [{{id: {value}}}]", "yaml")
    assert line.startswith("agents.yaml")


@pytest.mark.parametrize("key", ["id", "timeout", "events", "failure_mode", "body_access", "config"])
def test_a_variable_that_is_no_text_is_refused_by_its_name(tmp_path: Path, key: str) -> None:
    # As Python reads the bytes b"s3cret\xff" of the environment.
    environ = {"TOKEN": "s3cret\udcff"}
    data = {"agents": [{**REMOTE, key: {"x": "a${TOKEN}"} if key == "config" else "a${TOKEN}"}]}
    lines = refusal_of(tmp_path, data, "json", environ=environ)
    place = f"agents[0].{key}{'.x' if key == 'config' else ''}"
    assert lines == [f"agents.json: {place}: ${{TOKEN}}: not in UTF-8, expected text in UTF-8"]


@pytest.mark.parametrize("config", [{"x": "\ud800"}, {"\ud800": 1}, {"x": [{"y": "a\udfff"}]}])
def test_half_a_surrogate_pair_in_a_file_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    [line] = refusal_of(tmp_path, {"agents": [{**REMOTE, "config": config}]}, "json")
    assert "expected text without halves of surrogate pairs" in line


@pytest.mark.parametrize("name", ["s3cret", "Words", "NUMBER", "Choosy"])
def test_a_name_of_an_agent_in_a_variable_is_not_shown_in_parts(tmp_path: Path, name: str) -> None:
    data = {"agents": [{**REMOTE, "transport": "${WHERE}"}]}
    environ = {"WHERE": f"tests.files.writing:{name}"}
    for imports in (["tests.files.writing"], ["elsewhere"]):
        lines = refusal_of(tmp_path, data, "json", imports=imports, environ=environ)
        assert not any(name in line for line in lines), lines


@pytest.mark.parametrize("path", ["/{x:s3cret}", "/{s3cret}/{s3cret}", "/{s3cret", "s3cret/a" * 40])
def test_a_part_of_the_value_of_a_variable_is_not_shown(tmp_path: Path, path: str) -> None:
    data = {"agents": [REMOTE], "routes": [{"path": "${WHERE}", "agents": ["waf"]}]}
    lines = refusal_of(tmp_path, data, "json", environ={"WHERE": path})
    assert lines
    assert not any("s3cret" in line for line in lines), lines


def test_a_text_that_is_written_in_the_file_is_shown_though_a_variable_contains_it(tmp_path: Path) -> None:
    agents = [{**REMOTE, "id": "words", "transport": "${WHERE}"}, {**REMOTE, "after": ["wordz"]}]
    [line] = refusal_of(tmp_path, {"agents": agents}, "json", environ={"WHERE": "tcp://words.internal:9"})
    assert line.endswith("'wordz' is no agent; did you mean 'words'?")


MANY = 20_000
#: Files with more mistakes than anybody reads, and what the first of them is.
MISTAKES_WITHOUT_END: dict[str, tuple[str, str, str]] = {
    "keys": ("toml", "".join(f"k{number} = 1\n" for number in range(MANY)), "k0: no such key"),
    "tables": ("toml", "[[agents]]\n" * MANY, "agents[0]: no id"),
    "keys of yaml": ("yaml", "".join(f"k{number}: 1\n" for number in range(MANY)), "k0: no such key"),
    "variables": ("json", f'{{"agents": [{", ".join(["""{"id": "${NONE}"}"""] * MANY)}]}}', "agents[0].id: ${NONE}"),
}


@pytest.mark.parametrize("case", MISTAKES_WITHOUT_END)
def test_no_more_mistakes_are_looked_for_than_tell_that_it_is_another_file(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counting(*given: Any) -> Any:
        nonlocal asked
        asked += 1
        return get_close_matches(*given)

    monkeypatch.setattr("asgi_agents.files.mistakes.get_close_matches", counting)
    suffix, text, first = MISTAKES_WITHOUT_END[case]
    lines = refusal_of(tmp_path, text, suffix, environ={})
    assert first in lines[0]
    assert lines[-1] == f"agents.{suffix}: at least 950 other mistakes"
    assert asked <= 1000


@pytest.mark.parametrize(
    "text",
    [f"{'a.' * 1000}a = 1", f"[{'a.' * 1000}a]", "x = {" + '"a b" . ' * 1000 + "a = 1}"],
)
def test_a_key_of_toml_with_parts_without_end_is_refused_before_it_is_read(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes minutes for one of a few thousand parts."""
    monkeypatch.setattr("tomllib.loads", None)
    assert refusal_of(tmp_path, f"# A comment\n{text}\n") == [
        "agents.toml:2: a key of more than a hundred parts, expected no more"
    ]


def test_a_text_with_many_dots_is_no_key(tmp_path: Path) -> None:
    domains = ", ".join(f"{number}.internal.example" for number in range(300))
    config = {"hosts": domains, "versions": ".".join(["1"] * 99), "dots": "." * 300}
    [agent] = loaded(tmp_path, {"agents": [{**REMOTE, "config": config}]}).agents
    assert agent.config == config


def test_the_first_part_of_a_value_that_is_no_variable_is_named_and_none_behind_it(tmp_path: Path) -> None:
    """To look for the end of each takes the square of the length."""
    [line] = refusal_of(tmp_path, {"agents": [{**REMOTE, "id": "${A:-" * 20_000}]}, "json", environ={"A": "s3cret"})
    assert line.startswith("agents.json: agents[0].id: '${A:-${A:-")
    assert "s3cret" not in line


@pytest.mark.parametrize("name", ["agents.toml", "conf/agents.toml", "file.toml/agents.toml"])
def test_a_relative_path_that_leads_nowhere_is_refused_with_the_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.toml").touch()
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name)):
        with pytest.raises(ConfigurationError) as raised:
            load(path)
        assert str(raised.value).startswith(f"{name}: ")
        assert str(raised.value).endswith(f", expected a file that can be read in the working directory, {tmp_path}")
    with pytest.raises(ConfigurationError, match=r"expected a file that can be read$"):
        load(tmp_path / name)
    with pytest.raises(ConfigurationError, match=f"^{tmp_path / name}: "):
        protect(FastAPI(), config=name)


#: Where a path of a certificate may stand.
CERTIFICATES: dict[str, dict[str, Any]] = {
    "http": {"url": "https://agent/"},
    "forward auth": {"address": "https://agent/"},
    "stream": {"endpoints": ["tcp://agent:1"], "tls": True},
    "grpc": {"target": "grpcs://agent:1"},
}
#: What is no file with a certificate, and what is said of it.
NO_CERTIFICATES = {
    "null": ("a\0b", "embedded null byte"),
    "empty": ("", "No such file"),
    "directory": ("{tmp_path}", "no regular file"),
    "fifo": ("{tmp_path}/pipe", "no regular file"),
    "device": ("/dev/zero", "no regular file"),
}


@pytest.mark.parametrize("key", ["verify", "cert", "key"])
@pytest.mark.parametrize("path", NO_CERTIFICATES)
@pytest.mark.parametrize("transport", CERTIFICATES)
def test_what_is_no_file_with_a_certificate_is_refused_at_once(
    tmp_path: Path, transport: str, path: str, key: str, cert: str
) -> None:
    if transport == "grpc":
        pytest.importorskip("grpc", reason="grpcio is not installed: pip install '.[grpc]'")
    os.mkfifo(tmp_path / "pipe")
    given, expected = NO_CERTIFICATES[path]
    given = given.format(tmp_path=tmp_path)
    if (key, path) in {("verify", "directory"), ("key", "empty")}:
        pytest.skip("it may be one")
    table: dict[str, Any] = CERTIFICATES[transport] | ({"cert": [cert, given]} if key == "key" else {key: given})
    agent = {"id": "waf", "transport": table, "events": ["request_headers"]}
    [line] = refusal_of(tmp_path, {"agents": [agent]}, "json")
    assert line.startswith(f"agents.json: agents[0].transport.{'cert' if key == 'key' else key}: ")
    assert expected in line


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file, for a key that is none."""
    path = tmp_path_factory.mktemp("cert") / "cert.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\n")
    return str(path)


#: Truth values of YAML 1.1 where a text or anything may stand, and where what is said stands.
UNCLEAR = {
    "a text": ("failure_mode: {}", "failure_mode"),
    "one of several texts": ("events: [request_headers, {}]", "events[1]"),
    "an address": ("transport: {}", "transport"),
    "a text of any name": ("transport: {{url: 'http://a', headers: {{x-debug: {}}}}}", "transport.headers.x-debug"),
    "a number": ("timeout: {}", "timeout"),
    "what is for the agent": ("config: {{countries: [de, {}]}}", "config.countries[1]"),
    "all that is for the agent": ("config: {}", "config"),
}


@pytest.mark.parametrize("word", ["yes", "No", "on", "OFF"])
@pytest.mark.parametrize("where", UNCLEAR)
def test_a_word_of_yaml_that_is_a_text_to_others_is_refused(tmp_path: Path, where: str, word: str) -> None:
    text, place = UNCLEAR[where]
    entry = {"id": "waf", "transport": "tcp://127.0.0.1:9", "events": ["request_headers"]}
    key = text.partition(":")[0]
    rest = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in entry.items() if name not in ("id", key))
    head = f"agents:\n  - id: waf\n{rest}    "
    [line] = refusal_of(tmp_path, head + text.format(word), "yaml")
    assert line.startswith("agents.yaml:")
    assert f"agents[0].{place}: found {word}, which is true or false to some and text to others, expected" in line
    if "config" in place:
        for clear in (f"'{word}'", "true"):
            loaded(tmp_path, head + text.format(clear), "yaml")


@pytest.mark.parametrize("word", ["yes", "On", "no", "OFF"])
def test_a_word_of_yaml_where_only_a_truth_value_may_stand_is_one(tmp_path: Path, word: str) -> None:
    agent = f"{{id: waf, transport: 'tcp://127.0.0.1:9', events: [request_headers], enforce: {word}}}"
    data = f"debug: {word}\nagents: [{agent}]\n"
    configuration = loaded(tmp_path, data, "yaml")
    assert configuration.settings["debug"] is configuration.agents[0].enforce is (word.lower() in ("yes", "on"))


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
@pytest.mark.parametrize("key", ["timeout", "failure_mode", "enforce"])
def test_an_integer_that_python_does_not_write_is_refused(tmp_path: Path, key: str, suffix: str) -> None:
    number = f"0x{'f' * 6000}"
    if suffix == "toml":
        data = f"[[agents]]\nid='a'\ntransport='tcp://127.0.0.1:9'\nevents=['request_headers']\n{key} = {number}\n"
    else:
        data = f"agents: [{{id: a, transport: 'tcp://127.0.0.1:9', events: [request_headers], {key}: {number}}}]"
    [line] = refusal_of(tmp_path, data, suffix)
    assert f"agents[0].{key}: found an int, expected " in line
