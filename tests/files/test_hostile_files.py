"""Files that are no files, that grow when they are read, or whose variables are no text."""

import os
from pathlib import Path
from typing import Any

import pytest

from asgi_agents import ConfigurationError, load
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
    watch = FileWatch(path, b"before")
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
