"""``${VAR}``: what it becomes, and that its value is never shown."""

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_agents import ConfigurationError, load
from asgi_agents.files.mistakes import Mistakes
from asgi_agents.files.variables import Variables

from .writing import FORMATS, REMOTE, loaded, refusal_of, write

ENVIRON = {"A": "one", "EMPTY": "", "LOWER_9": "nine", "_": "under", "DOLLAR": "${A}$$"}

VALUES: dict[str, str] = {
    "": "",
    "plain": "plain",
    "${A}": "one",
    "${A}${A}": "oneone",
    "x${A}y": "xoney",
    "${LOWER_9}": "nine",
    "${_}": "under",
    "${EMPTY}": "",
    "${EMPTY:-other}": "other",
    "${A:-other}": "one",
    "${B:-other}": "other",
    "${B:-}": "",
    "${B:-a:-b $x}": "a:-b $x",
    "$$": "$",
    "$${A}": "${A}",
    "$$$${A}": "$${A}",
    "$$${A}": "$one",
    "$": "$",
    "a$b$": "a$b$",
    "^x+$|$1": "^x+$|$1",
    # The value of a variable is not looked at again.
    "${DOLLAR}": "${A}$$",
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_with_variables(tmp_path: Path, text: str) -> None:
    data = {"agents": [{**REMOTE, "config": {"deep": [text], text or "x": 1}}]}
    [agent] = loaded(tmp_path, data, environ=ENVIRON).agents
    assert agent.config["deep"] == [VALUES[text]]
    # Keys are not looked at.
    assert (text or "x") in agent.config


MALFORMED = ["${", "${}", "${A", "${ A}", "${A-b}", "${9}", "${A:b}", "a ${Ä}", "${A:-b"]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_begins_like_a_variable_and_is_none_is_refused(tmp_path: Path, text: str) -> None:
    [line] = refusal_of(tmp_path, {"agents": [{**REMOTE, "config": {"x": text}}]}, environ=ENVIRON)
    assert line.startswith("agents.toml: agents[0].config.x: ")
    assert line.endswith(", expected ${NAME}, ${NAME:-default}, or $$ for a dollar")


BARE: dict[str, list[str]] = {
    "$A": ["A"],
    "Bearer $A": ["A"],
    "$A-$_-$A": ["A", "_"],
    "${B:-$A}": ["A"],
    "$$$A": ["A"],
    # Escaped, no variable of the environment, a variable, and no name.
    "$$A": [],
    "$AB": [],
    "$B": [],
    "${A}": [],
    "$9$": [],
}


@pytest.mark.parametrize("text", BARE)
def test_a_variable_without_braces_is_text_and_the_log_says_so(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(tmp_path, {"agents": [{**REMOTE, "config": {"x": [text]}}]}, environ=ENVIRON)
    lines = [record.getMessage().split(": ", 1)[1] for record in caplog.records if "is read as text" in record.msg]
    assert lines == [
        f"agents[0].config.x[0]: ${name} is read as text, though the environment has such a variable; for its value"
        f" write ${{{name}}}, for the text $${name}"
        for name in BARE[text]
    ]
    assert ENVIRON["A"] not in caplog.text


def test_all_variables_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    data = {"agents": [{**REMOTE, "transport": "tcp://${HOST}:${PORT}", "timeout": "${T}"}]}
    assert refusal_of(tmp_path, data, environ={}) == [
        f"agents.toml: agents[0].{key}: ${{{name}}}: the environment has no such variable; expected it, or"
        f" ${{{name}:-default}}"
        for key, name in (("transport", "HOST"), ("transport", "PORT"), ("timeout", "T"))
    ]


def test_the_environment_of_the_process_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGI_AGENTS_TEST_ID", "from-outside")
    [agent] = loaded(tmp_path, {"agents": [{**REMOTE, "id": "${ASGI_AGENTS_TEST_ID}"}]}).agents
    assert agent.id == "from-outside"


#: A key of an agent, what the variable holds, and what that becomes.
BECOMES: list[tuple[str, str, Any]] = [
    ("timeout", "2", 2.0),
    ("timeout", "2.5", 2.5),
    ("max_concurrent_calls", "7", 7),
    ("max_request_body_bytes", "9", 9),
    ("max_request_body_bytes", "false", None),
    ("enforce", "false", False),
    ("enforce", "true", True),
    ("decode", "TRUE", True),
    ("circuit_breaker", "false", None),
    ("id", "5", "5"),
    ("config", "5", "5"),
    ("config", "true", "true"),
]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("key", "value", "expected"), BECOMES)
def test_a_value_that_is_one_variable_becomes_what_the_key_wants(
    tmp_path: Path, suffix: str, key: str, value: str, expected: Any
) -> None:
    for text in ("${V}", f"${{W:-{value}}}"):
        [agent] = loaded(tmp_path, {"agents": [{**REMOTE, key: text}]}, suffix, environ={"V": value}).agents
        found = getattr(agent, key)
        assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("text", ["5", "${V}0", "0${V}", "${V}${V}", "$$5"])
def test_other_texts_become_no_numbers(tmp_path: Path, text: str) -> None:
    data = {"agents": [{**REMOTE, "timeout": text}]}
    assert refusal_of(tmp_path, data, environ={"V": "1"}) == [
        f"agents.toml: agents[0].timeout: found {text!r}, expected a number"
    ]


# What must not be shown

SECRET = "hunter2-and-more"
#: What a file has with a secret in it, in a place where it is wrong.
WRONG: dict[str, dict[str, Any]] = {
    "a number": {"timeout": "${S}"},
    "a part of a number": {"timeout": "1${S}"},
    "a name": {"failure_mode": "${S}"},
    "a mode": {"request_body_mode": "${S}"},
    "a flag": {"decode": "${S}"},
    "an id": {"id": "a b ${S}"},
    "an address": {"transport": "${S}"},
    "an address without a scheme": {"transport": "user:${S}@host:1"},
    "an address of another scheme": {"transport": "ftp://${S}:${S}@host"},
    "a part of an address": {"transport": "tcp://${S}@127.0.0.1:9"},
    "a port": {"transport": "tcp://127.0.0.1:${S}"},
    "one of several": {"transport": ["tcp://127.0.0.1:9", "http://${S}"]},
    "an event": {"events": ["${S}"]},
    "a type": {"response_content_types": ["${S}"]},
    "a header that it sets": {"sets": ["${S} x"]},
    "another agent": {"after": ["${S}"]},
    "an object": {"transport": "tests.files.writing:${S}"},
    "a breaker": {"circuit_breaker": {"failure_threshold": "${S}"}},
    "a URL": {"transport": {"url": "${S}"}},
    "a URL with a user": {"transport": {"url": "http://${S}@127.0.0.1"}},
    "a header": {"transport": {"url": "https://127.0.0.1", "headers": {"authorization": "Bearer ${S}\n"}}},
    "the name of a file": {"transport": {"url": "https://127.0.0.1", "verify": "/nowhere/${S}"}},
    "a password": {"transport": {"url": "http://127.0.0.1", "cert": ["a.pem", "b.pem", "${S}"]}},
    "endpoints": {"transport": {"endpoints": ["tcp://${S}"]}},
    "beside something else that is wrong": {"timeout": -1, "config": {"key": "${S}"}},
}


@pytest.mark.parametrize("secret", [SECRET, "q7'\"\\x", "ää öü", "12345678"])
@pytest.mark.parametrize("case", WRONG)
def test_a_refusal_shows_the_name_of_a_variable_and_never_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str, secret: str
) -> None:
    caplog.set_level(logging.DEBUG)
    path = write(tmp_path, {"agents": [{**REMOTE, **WRONG[case]}]}, "json")
    try:
        load(path, environ={"S": secret}, imports=["tests.files.writing"])
    except ConfigurationError as exc:
        shown = _all_of(exc)
        assert secret not in shown
        assert repr(secret)[1:-1] not in shown
        assert secret[:6] not in shown
    else:
        # What has become a number, or is the id of a file: nothing is wrong with it.
        assert secret == "12345678"
    assert secret not in caplog.text


#: Where a value of two characters is a part of a word.
SHORT: dict[str, dict[str, Any]] = {
    "an id": {"id": "a b x${S}y"},
    "a name": {"failure_mode": "x${S}y"},
    "a header that it sets": {"sets": ["x${S}y z"]},
    "another agent": {"after": ["x${S}y"]},
    "an event": {"events": ["x${S}y"]},
    "an address": {"transport": "ftp://x${S}y@host"},
    "an address without a scheme": {"transport": "x${S}y:9"},
    "the name of a file": {"transport": {"url": "https://127.0.0.1", "verify": "/nowhere/x${S}y"}},
}


@pytest.mark.parametrize("case", SHORT)
def test_a_short_value_is_hidden_in_the_value_that_it_is_a_part_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, {"agents": [{**REMOTE, **SHORT[case]}]}, environ={"S": "q7"})
    assert "q7" not in _all_of(caught.value)
    assert "${S}" in str(caught.value)
    assert "q7" not in caplog.text


def test_a_part_of_a_value_that_is_quoted_is_hidden_too() -> None:
    variables = Variables({"S": "q7"}, Mistakes("x", {}))
    variables.expand({"transport": "tcp://x${S}y@host:9", "written": "host"})
    assert variables.hide("no 'xq7y@host', no 'host'") == "no 'tcp://x${S}y@host:9', no 'host'"


def _all_of(exc: BaseException | None) -> str:
    """The messages of an exception, and of all that it refers to."""
    shown = ""
    while exc is not None:
        shown += f"{exc}\n{exc.args!r}\n"
        exc = exc.__cause__ or exc.__context__
    return shown


def test_neither_configuration_nor_agent_shows_a_secret(tmp_path: Path) -> None:
    data = {
        "agents": [
            {
                **REMOTE,
                "transport": {"url": "https://127.0.0.1:9", "headers": {"authorization": "Bearer ${S}"}},
                "config": {"key": "${S}"},
            }
        ]
    }
    configuration = loaded(tmp_path, data, environ={"S": SECRET})
    [agent] = configuration.agents
    assert agent.config == {"key": SECRET}
    assert SECRET not in f"{configuration!r} {agent!r} {agent.transport!r} {configuration.arguments!r}"


@given(
    st.lists(st.sampled_from(["$", "${A}", "${A:-b}", "${", "}", "$$", "x", "A", ":-"]), max_size=8).map("".join),
    st.text(max_size=5),
)
def test_what_was_a_dollar_twice_is_a_dollar_and_no_text_raises(text: str, value: str) -> None:
    mistakes = Mistakes("x", {})
    variables = Variables({"A": value}, mistakes)
    assert variables.expand(text.replace("$", "$$")) == text
    assert not len(mistakes)
    assert isinstance(variables.expand(text), str)
