"""What is said of the rules that have matched: as the rules are written, and nothing of what clients sent."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_agents import AgentConfig, ConfigurationError, protect
from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event

from .core_rule_set import installed

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_texts import RuleTexts, texts_of

SENT = "evil<SECRETDATA>"


def rule(number: int, said: str) -> str:
    return f'SecRule ARGS "@contains evil" "id:{number},phase:2,pass,log,{said}"\n'


async def recorded(agent: ModSecurity, uri: str = f"/?q={SENT}") -> Any:
    """The audit metadata of the agent on a request."""
    return (await agent.on_request_headers(request_headers_event(uri=uri))).audit


RULES = (
    rule(1, "msg:'Static',tag:'attack-evil',tag:bare")
    + rule(2, "msg:'Found %{MATCHED_VAR} in it',tag:'saw %{MATCHED_VAR}',tag:'attack'")
    + rule(3, "msg:'Total: %{TX.none}'")
    + rule(4, "tag:'no-message'")
    + rule(5, "msg:'It\\'s quoted, with a comma'")
    + rule(6, "msg:'Chained',chain")
    + """  SecRule ARGS:q "@rx ." "tag:'%{ARGS.q}'"\n"""
)


async def test_messages_are_those_of_the_rules_as_they_are_written() -> None:
    audit = await recorded(ModSecurity(text=RULES))

    assert list(audit.rule_ids) == ["1", "2", "3", "4", "5", "6"]
    assert audit.custom == {"messages": {"1": "Static", "5": "It\\'s quoted, with a comma", "6": "Chained"}}
    assert list(audit.tags) == ["attack-evil", "bare", "attack", "no-message"]


async def test_nothing_of_the_request_is_in_the_record() -> None:
    audit = await recorded(ModSecurity(text=RULES))

    assert "SECRET" not in str((audit.rule_ids, audit.tags, audit.reason_codes, audit.custom))


async def test_so_it_is_for_rules_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(RULES)
    audit = await recorded(ModSecurity([str(tmp_path / "*.conf")]))

    assert audit.custom["messages"]["1"] == "Static"
    assert list(audit.tags) == ["attack-evil", "bare", "attack", "no-message"]


@pytest.mark.parametrize("include", ['Include "{}/b c.conf"', " include {}/b c.conf", "Include {}/b.conf # c"])
@pytest.mark.parametrize("in_a_file", [False, True])
def test_no_file_is_passed_over_that_rules_include(include: str, in_a_file: bool, tmp_path: Path) -> None:
    """As the engine does without a word, where the name has blanks and such a file is there."""
    for name in ("b.conf", "b c.conf"):
        (tmp_path / name).write_text(rule(2, "msg:'B'"))
    text = rule(1, "msg:'A'") + include.format(tmp_path) + "\n"
    if in_a_file:
        (tmp_path / "a.conf").write_text(text)
        text = f"Include {tmp_path}/a.conf\n"
    with pytest.raises(ConfigurationError, match=r"Include '.+' would not be read, expected a name without blanks$"):
        ModSecurity(text=text)


FILLED_IN = """id:7,phase:2,pass,log,msg:'M',tag:'saw %{MATCHED_VAR}',tag:ok"""
OVER_LINES = FILLED_IN.replace(",", ",\\\n  ")


@pytest.mark.parametrize(
    "written",
    [
        f'secrule ARGS "@contains none" "id:6,phase:2"\nsecrule ARGS "@contains evil" "{FILLED_IN}"',
        f'SecRule ARGS "@contains evil" "{FILLED_IN.upper().replace("%{MATCHED_VAR}", "%{matched_var}")}"',
        f'SecRule ARGS "@rx evil|id:1" "{FILLED_IN}"',
        f'SecRule ARGS "@rx evil|\\"id:1" \\\n  "{OVER_LINES}"\nSecMarker "END"',
    ],
    ids=["small", "capitals", "id-that-is-looked-for", "over-lines"],
)
async def test_a_rule_is_known_however_it_is_written(written: str) -> None:
    audit = await recorded(ModSecurity(text=written))

    assert list(audit.rule_ids) == ["7"]
    assert [tag.lower() for tag in audit.tags] == ["ok"]
    assert audit.custom == {"messages": {"7": "M"}}


async def test_a_rule_is_known_wherever_it_is_included(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    outer, middle, inner = tmp_path / "outer.conf", tmp_path / "more" / "middle.conf", tmp_path / "more" / "inner.conf"
    outer.write_text('Include "more/middle.conf"\nSecRule ARGS "@contains evil" "id:5,phase:2,pass,log,tag:outer"')
    middle.write_text("include inner.conf")
    inner.write_text(f'SecRule ARGS "@contains evil" "{FILLED_IN}"')
    for agent in (ModSecurity([str(outer)]), ModSecurity(text=f"Include {outer}")):
        audit = await recorded(agent)
        assert list(audit.rule_ids) == ["7", "5"]
        assert list(audit.tags) == ["ok", "outer"]
        assert audit.custom == {"messages": {"7": "M"}}


async def test_of_a_rule_that_is_not_known_nothing_is_said_but_its_id() -> None:
    agent = ModSecurity(text=f'SecRule ARGS "@contains evil" "{FILLED_IN}"')
    agent._rules.texts.clear()  # type: ignore[attr-defined]
    audit = await recorded(agent)

    assert (list(audit.rule_ids), list(audit.tags), audit.custom) == (["7"], [], {})


async def test_the_core_rule_set_has_messages() -> None:
    agent = ModSecurity(crs=str(installed()))
    audit = await recorded(agent, "/?id=1%27%20OR%20%271%27=%271%27--%20")

    assert "SQL Injection Attack Detected via libinjection" in audit.custom["messages"].values()
    # That of the threshold has the score filled in.
    assert "949110" in audit.rule_ids
    assert "949110" not in audit.custom["messages"]
    assert "attack-sqli" in audit.tags


def test_what_is_said_twice_otherwise_is_not_known() -> None:
    one, other = rule(1, "msg:'A',tag:'x',tag:'y'"), rule(1, "msg:'B',tag:'y'")
    assert texts_of([one, other]) == {1: RuleTexts(None, frozenset("y"))}
    assert texts_of([one, one]) == {1: RuleTexts("A", frozenset("xy"))}
    assert texts_of(["# " + one, "SecRuleEngine On"]) == {}
    assert texts_of([rule(2, "msg:'A',msg:'B'")]) == {2: RuleTexts(None, frozenset())}


@pytest.mark.parametrize("where", ["before", "text"])
def test_a_fault_is_said_with_the_argument_that_it_is_in(where: str) -> None:
    options = {"crs": str(installed()), where: "SecRule ARGS"}
    with pytest.raises(ConfigurationError, match=f"^ModSecurity: {where}: Rules error. Line: 1. Column: "):
        ModSecurity(**options)  # type: ignore[arg-type]


def test_a_fault_in_a_file_is_said_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text("SecRule ARGS")
    with pytest.raises(ConfigurationError, match=str(path)):
        ModSecurity([str(path)])


def comments(**options: Any) -> TestClient:
    app = FastAPI()

    @app.post("/comments")
    @app.post("/comments/")
    async def comment() -> str:
        return "ok"

    protect(app, agents=[AgentConfig("waf", ModSecurity(crs=str(installed()), **options), timeout=60.0)])
    return TestClient(app, base_url="http://app.example")


def test_the_exclusions_of_the_page_hold_where_it_says() -> None:
    """Those for one path, and for one field of it; and what does not work."""
    installed()

    from .crs_exclusions import before

    def excluding(what: str, phase: int = 1) -> str:
        return f'SecRule REQUEST_FILENAME "@streq /comments" "id:10001,phase:{phase},pass,nolog,ctl:{what}"'

    one_rule, one_field = excluding("ruleRemoveById=942100"), excluding("ruleRemoveTargetById=942100;ARGS:comment")
    for options, statuses in (
        ({}, [403, 403, 403]),
        ({"before": one_rule}, [200, 200, 403]),
        ({"before": one_field}, [200, 403, 403]),
        ({"before": before}, [200, 403, 403]),
        ({"text": one_rule}, [200, 200, 403]),
        ({"text": excluding("ruleRemoveById=942100", phase=2)}, [403, 403, 403]),
        ({"text": "SecRuleRemoveById 942100"}, [200, 200, 200]),
    ):
        with comments(**options) as client:
            asked = [("/comments", "comment"), ("/comments", "other"), ("/comments/", "comment")]
            found = [client.post(path, data={field: "1' or '1"}).status_code for path, field in asked]
        assert found == statuses, options
