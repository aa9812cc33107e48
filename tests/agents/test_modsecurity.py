"""ModSecurity itself, with the OWASP Core Rule Set and with other rules."""

import gc
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asgi_agents import AgentConfig, AuditRecord, ConfigurationError, EventType
from asgi_agents.agents import ModSecurity
from asgi_agents.protocol import Headers, ResponseBodyChunkEvent, ResponseHeadersEvent
from tests.stream_agents.processes import PythonProcess, until
from tests.support.asgi import App, Client, body, guarded, start
from tests.unjudged.asking import PATIENCE, Echo, Session, ask, ask_again, config

from .core_rule_set import FORM, Attack, attacks, checkout, installed, judged

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_transaction import Transaction

ROOT = Path(__file__).parents[2]
FORM_TYPE = (b"content-type", FORM.encode())
JSON_TYPE = (b"content-type", b"application/json")
EVIL = "SecRule ARGS \"@contains evil\" \"id:7,phase:2,deny,log,msg:'evil',tag:'attack-evil'\""


@pytest.fixture(scope="module")
def core() -> ModSecurity:
    return ModSecurity(crs=str(installed()))


HOST, AGENT, ACCEPT = (b"host", b"app.example"), (b"user-agent", b"x"), (b"accept", b"*/*")


def asking(target: str, client: Client) -> Client:
    """``client`` with path and query as they are written."""
    path, _, query = target.partition("?")
    client.scope["path"], client.scope["query_string"] = path, query.encode()
    return client


def post(data: bytes, *fields: tuple[bytes, bytes], target: str = "/") -> Client:
    return asking(target, Client("POST", headers=[HOST, AGENT, ACCEPT, *fields], body=data))


def get(target: str) -> Client:
    return asking(target, Client(headers=[HOST, AGENT, ACCEPT]))


@pytest.mark.parametrize(
    ("path", "rule", "tag"),
    [
        ("/?q=1%27%20or%201=1--%20-", "942100", "attack-sqli"),
        ("/?q=<script>alert(1)</script>", "941100", "attack-xss"),
        ("/?file=../../../../etc/passwd", "930100", "attack-lfi"),
        ("/?cmd=;cat%20/etc/passwd", "932160", "attack-rce"),
        ("/?q=%E2%80%98%20or%201=1%20union%20select%20password%20from%20users--", "942190", "attack-sqli"),
    ],
)
async def test_an_attack_in_the_query_is_blocked_and_recorded_by_rule_and_tag(
    core: ModSecurity, path: str, rule: str, tag: str
) -> None:
    app, records = App(), list[AuditRecord]()
    client = await ask(app, config(core, "waf"), client=get(path), on_audit=records.append)
    assert (client.status, app.calls) == (403, 0)
    answer = records[0].answers[-1]
    assert rule in answer.rule_ids
    assert tag in answer.tags
    assert answer.reason_codes == ["waf"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"q=1%27+or+1%3D1--+-", FORM_TYPE),
        (b'{"deep": [{"q": "1\' or 1=1-- -"}]}', JSON_TYPE),
        (b"<a><b>1' or 1=1-- -</b></a>", (b"content-type", b"application/soap+xml")),
        (
            b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\n1\' or 1=1-- -\r\n--x--\r\n',
            (b"content-type", b"multipart/form-data; boundary=x"),
        ),
    ],
)
@pytest.mark.parametrize("mode", ["buffer", "stream"])
async def test_an_attack_in_a_body_is_blocked_however_it_is_written(
    core: ModSecurity, mode: str, data: bytes, field: tuple[bytes, bytes]
) -> None:
    app = App()
    client = await ask(app, config(core, request_body_mode=mode), client=post(data, field))
    assert client.status == 403
    assert b"or 1=1" not in app.body


async def test_the_app_of_the_page_is_guarded() -> None:
    installed()
    from .crs_app import app

    assert (await ask_again(app, get("/search?q=hello"))).body == b'"hello"'
    assert (await ask_again(app, get("/search?q=<script>alert(1)</script>"))).status == 403


async def test_ordinary_requests_pass_and_how_many_do_not_is_on_the_page(core: ModSecurity) -> None:
    lines = (Path(__file__).parent / "ordinary.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 200
    refused = [line for line in lines if not (await judged(core, _ordinary(line))).is_allow]
    page = (ROOT / "docs" / "pages" / "agents" / "modsecurity.md").read_text()
    assert f"{len(refused)} of 200" in page, refused


def _ordinary(line: str) -> Attack:
    """A request as browsers send it. A line of the file has method, target, and kind and text of the body."""
    method, uri, *rest = line.split(" ", 3)
    kind, data = rest or ("", "")
    content = data.encode()
    types = {
        "form": FORM,
        "json": "application/json",
        "xml": "application/xml",
        "multipart": "multipart/form-data; boundary=x",
    }
    if kind == "multipart":
        head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="notes.txt"\r\nContent-Type: text/plain'
        content = head + b"\r\n\r\n" + content + b"\r\n--x--\r\n"
    fields = [
        (b"host", b"shop.example"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (b"accept", b"text/html,application/json;q=0.9,*/*;q=0.8"),
        (b"accept-language", b"en-US,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"cookie", b"session=eyJ1c2VyIjo0Mn0.aGk; theme=dark"),
    ]
    if kind:
        fields += [(b"content-type", types[kind].encode()), (b"content-length", b"%d" % len(content))]
    return Attack("", method, uri, "HTTP/1.1", fields, content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "files",
    [
        "REQUEST-930-APPLICATION-ATTACK-LFI",
        "REQUEST-932-APPLICATION-ATTACK-RCE",
        "REQUEST-941-APPLICATION-ATTACK-XSS",
        "REQUEST-942-APPLICATION-ATTACK-SQLI",
    ],
)
async def test_the_attacks_of_its_own_regression_tests_are_blocked(files: str) -> None:
    waf, count = ModSecurity(crs=str(checkout())), 0
    for attack in attacks(checkout(), files, 1):
        answer = await judged(waf, attack)
        assert not answer.is_allow, attack
        assert attack.rule_id in answer.audit.rule_ids, attack
        count += 1
    assert count


@pytest.mark.parametrize(
    ("name", "value"), [(b"transfer-encoding", b"chunked"), (b"content-length", b"10"), (b"content-length", b"0")]
)
async def test_a_body_that_is_announced_and_does_not_come_hides_no_query(name: bytes, value: bytes) -> None:
    app = App()
    client = asking("/?a=evil", Client("POST", body=[b""]))
    client.scope["headers"] = [(name, value)]
    assert (await ask(app, config(ModSecurity(text=EVIL)), client=client)).status == 403
    assert app.calls == 0


@pytest.mark.parametrize("mode", ["buffer", "stream"])
@pytest.mark.parametrize(("data", "status"), [(b"token=1", 200), (b"tok=1", 403)])
async def test_a_rule_that_asks_for_something_in_the_body_waits_for_it(mode: str, data: bytes, status: int) -> None:
    waf = ModSecurity(text='SecRule &ARGS:token "@eq 0" "id:8,phase:2,deny,log"')
    app = App()
    pieces = Client("POST", headers=[FORM_TYPE], body=[data[:3], data[3:]])
    client = await ask(app, config(waf, request_body_mode=mode), client=pieces)
    assert (client.status, app.body) == (status, data if status == 200 else b"")


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ('SecRule REQUEST_HEADERS:x-a "@streq \\xc3\\xa9" "id:9,phase:1,deny,log"', [(b"x-a", "é".encode())]),
        ('SecRule REQUEST_HEADERS:x-a "@rx ^\\xe9$" "id:9,phase:1,deny,log"', [(b"x-a", b"\xe9")]),
        ('SecRule REQUEST_HEADERS:x-a "@streq b" "id:9,phase:1,deny,log"', [(b"x-a", b"a"), (b"x-a", b"b")]),
    ],
)
async def test_headers_reach_the_engine_as_they_came(rule: str, fields: list[tuple[bytes, bytes]]) -> None:
    waf = ModSecurity(text=rule.replace("\\xc3\\xa9", "é"))
    assert (await ask(App(), config(waf), client=Client(headers=fields))).status == 403


async def test_whoever_has_no_address_is_judged_as_well() -> None:
    client = get("/?a=evil")
    client.scope["client"] = None
    assert (await ask(App(), config(ModSecurity(text=EVIL)), client=client)).status == 403


async def test_a_handshake_is_judged_as_a_request() -> None:
    session, app = Session("hello", path="/", query_string=b"a=evil"), Echo()
    await session.call(guarded(app, config(ModSecurity(text=EVIL))))
    assert (session.accepted, app.got) == (False, [])


async def test_a_response_that_shows_an_error_of_the_database_is_blocked() -> None:
    waf = ModSecurity(crs=str(installed()), responses=True)
    leak = b"<b>You have an error in your SQL syntax; check the manual for MySQL near '''</b>"
    app = App(start(200, (b"content-type", b"text/html")), body(leak))
    client = await ask(app, config(waf), client=get("/"))
    assert (client.status, leak in client.body) == (403, False)
    safe = App(start(200, (b"content-type", b"text/html")), body(b"fine"))
    assert (await ask(safe, config(waf), client=get("/"))).body == b"fine"


async def test_a_rule_may_redirect_or_choose_the_status() -> None:
    waf = ModSecurity(
        text='SecRule ARGS:a "@streq 1" "id:1,phase:2,deny,status:451,log"\n'
        'SecRule ARGS:a "@streq 2" "id:2,phase:2,redirect:https://app.example/help,log"\n'
        'SecRule ARGS:a "@streq 3" "id:3,phase:1,drop,log"'
    )
    answers = [await ask(App(), config(waf), client=get(f"/?a={number}")) for number in (1, 2, 3)]
    assert [answer.status for answer in answers] == [451, 302, 403]
    assert answers[1].header(b"location") == b"https://app.example/help"


async def test_rules_that_only_detect_are_in_the_record_and_stop_nothing() -> None:
    app, records = App(), list[AuditRecord]()
    waf = ModSecurity(text=f"SecRuleEngine DetectionOnly\n{EVIL}")
    client = await ask(app, config(waf), client=get("/?a=evil"), on_audit=records.append)
    assert (client.status, app.calls) == (200, 1)
    assert (records[0].answers[0].rule_ids, records[0].answers[0].tags) == (["7"], ["attack-evil"])


async def test_nothing_of_a_request_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    waf = config(ModSecurity(text=EVIL))
    xml = (b"content-type", b"text/xml")
    for client in (get("/?a=evil"), post(b"<a>secret</b>", xml), post(b"<x:a>secret</x:a>", xml), post(b"", xml)):
        await ask(App(), waf, client=client)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "field", "status"),
    [
        (b"{", JSON_TYPE, 400),
        (b"<a>", (b"content-type", b"text/xml"), 400),
        (b"<a/>", (b"content-type", b"text/xml"), 200),
        (b"--y", (b"content-type", b"multipart/form-data; boundary=x"), 400),
        (b"", JSON_TYPE, 200),
        (b"{", (b"content-type", b"text/plain"), 200),
    ],
)
async def test_a_body_that_the_engine_can_not_read_is_refused(
    data: bytes, field: tuple[bytes, bytes], status: int
) -> None:
    assert (await ask(App(), config(ModSecurity(text=EVIL)), client=post(data, field))).status == status


async def test_a_request_at_which_a_rule_meets_a_limit_is_refused_and_is_no_failure() -> None:
    """Else whoever sends five of them would open the breaker for everybody."""
    waf = ModSecurity(text='SecPcreMatchLimit 100\nSecRule ARGS "@rx ^(a+)+$" "id:1,phase:2,pass,nolog"')
    app = guarded(App(), config(waf, failure_mode="open"))
    for _ in range(10):
        client = post(b"x=" + b"a" * 40 + b"b", FORM_TYPE)
        assert (await ask_again(app, client)).status == 403
    assert (await ask_again(app, get("/?x=aaa"))).status == 200


@pytest.mark.parametrize(("mode", "status"), [("closed", 503), ("open", 200)])
async def test_an_engine_that_fails_is_a_failure_of_the_agent(
    mode: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Transaction) -> None:
        raise RuntimeError("ModSecurity has failed")

    monkeypatch.setattr(Transaction, "_head", fail)
    app = App()
    answer = await ask(app, config(ModSecurity(text=EVIL), failure_mode=mode), client=get("/?a=evil"))
    assert (answer.status, app.calls) == (status, int(status == 200))


async def test_the_event_loop_goes_on_while_the_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, judge = anyio.Event(), threading.Event(), Transaction.request_head

    def wait(self: Transaction) -> Any:
        anyio.from_thread.run_sync(begun.set)
        assert go_on.wait(PATIENCE)
        return judge(self)

    monkeypatch.setattr(Transaction, "request_head", wait)
    client = get("/?a=evil")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_again, guarded(App(), config(ModSecurity(text=EVIL))), client)
        with anyio.fail_after(PATIENCE):
            await begun.wait()
        go_on.set()
    assert client.status == 403


@pytest.mark.parametrize("target", ["/", "/?a=evil"])
async def test_a_transaction_is_freed_when_its_request_has_ended(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Transaction]] = []
    begin = Transaction.__init__

    def remember(self: Transaction, *given: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *given)

    monkeypatch.setattr(Transaction, "__init__", remember)
    app = guarded(App(), config(ModSecurity(text=EVIL)))
    for _ in range(3):
        await ask_again(app, post(b"b=1", FORM_TYPE, target=target))
    # A thread that has said its result may still be about to forget what it was given: it has when it runs again.
    await anyio.to_thread.run_sync(int)
    gc.collect()
    assert [transaction() for transaction in made] == [None] * 3


@pytest.mark.parametrize("failure_mode", ["closed", "open"])
async def test_a_request_whose_transaction_is_given_up_is_refused_and_is_no_failure(failure_mode: str) -> None:
    """Those of requests whose end the agent was not told are given up. Whoever opens many would choose how it ends."""
    waf = ModSecurity(text=EVIL, max_transactions=1, responses=True)
    app, records = App(), list[AuditRecord]()
    guard = guarded(app, config(waf, failure_mode=failure_mode), on_audit=records.append)
    for _ in range(6):
        slow = Client("POST", headers=[FORM_TYPE], unfinished=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_again, guard, slow)
            with anyio.fail_after(PATIENCE):
                while not waf._open:  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            assert (await ask_again(guard, get("/"))).status == 200
            slow.give(b"a=evil")
        assert slow.status == 503
    assert all(answer.failure is None for record in records for answer in record.answers)
    assert records[-1].answers[-1].reason_codes == ["waf", "too-many-requests"]
    head = ResponseHeadersEvent(correlation_id="none", status=200, headers=Headers())
    assert not (await waf.on_response_headers(head)).is_allow
    chunk = ResponseBodyChunkEvent(correlation_id="none", data=b"a", is_last=True)
    assert not (await waf.on_response_body_chunk(chunk)).is_allow


async def test_the_engine_writes_its_audit_log_where_the_rules_want_one(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    wanted = (
        f'SecAuditEngine RelevantOnly\nSecAuditLogRelevantStatus "^403"\nSecAuditLogFormat JSON\nSecAuditLog {log}\n'
    )
    waf = ModSecurity(text=wanted + EVIL)
    await ask(App(), config(waf), client=get("/?a=evil"))
    await ask(App(), config(waf), client=get("/?a=fine"))
    assert log.read_text().count('"transaction"') == 1


async def test_rules_are_read_from_files_and_exclusions_come_last(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(EVIL)
    (tmp_path / "b.conf").write_text('SecRule ARGS "@contains bad" "id:10,phase:2,deny,log"')
    waf = ModSecurity([str(tmp_path / "*.conf")], text="SecRuleRemoveById 10")
    statuses = [(await ask(App(), config(waf), client=get(f"/?a={word}"))).status for word in ("evil", "bad")]
    assert statuses == [403, 200]


async def test_what_stands_before_the_core_rules_is_read_by_them() -> None:
    threshold = 'SecAction "id:900110,phase:1,nolog,pass,t:none,setvar:tx.inbound_anomaly_score_threshold=1000"'
    waf = ModSecurity(crs=str(installed()), before=threshold)
    assert (await ask(App(), config(waf), client=get("/?q=<script>alert(1)</script>"))).status == 200


async def test_a_higher_paranoia_level_finds_more() -> None:
    path = "/customers?name=O%27Brien"
    statuses = [
        (await ask(App(), config(ModSecurity(crs=str(installed()), paranoia_level=level)), client=get(path))).status
        for level in (1, 4)
    ]
    assert statuses == [200, 403]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there are no rules"),
        ({"text": "# none"}, "there are no rules"),
        ({"text": "SecRule"}, "text: Rules error. Line: 1. Column: "),
        ({"text": f"{EVIL}\n\nNope\n"}, "text: Rules error. Line: 3. Column: "),
        ({"text": "Include /nowhere"}, r"text: Rules error\. Line: 1\. .* Looking at: '/nowhere', '/nowhere'\.$"),
        ({"text": 1}, "text is "),
        ({"crs": 1}, "crs=1, expected the name"),
        ({"rules": "a.conf"}, "rules='a.conf'"),
        ({"rules": ["/nowhere/*.conf"]}, "rules has '/nowhere/"),
        ({"crs": "/nowhere"}, "crs='/nowhere' has no rules"),
        ({"text": EVIL, "before": EVIL}, "before is for"),
        ({"text": EVIL, "paranoia_level": 5}, "paranoia_level=5"),
        ({"text": EVIL, "threads": 0}, "threads=0"),
        ({"text": EVIL, "max_transactions": 0}, "max_transactions=0"),
    ],
)
def test_rules_that_can_not_work_are_a_configuration_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^ModSecurity: {message}"):
        ModSecurity(**options)


def test_a_mistake_in_rules_is_said_to_be_where_it_is(tmp_path: Path) -> None:
    good, bad, outer = (tmp_path / name for name in ("good.conf", "bad.conf", "outer.conf"))
    good.write_text(EVIL)
    bad.write_text("\nSecRule X")
    outer.write_text(f"Include {bad}")
    crs = str(installed())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"crs": crs, "before": "SecRule X"}, "before: Rules error. Line: 1. "),
        ({"crs": crs, "text": "SecRule X"}, "text: Rules error. Line: 1. "),
        ({"rules": [str(good)], "text": "SecRule X"}, "text: Rules error. Line: 1. "),
        ({"rules": [str(good), str(bad)], "text": EVIL}, f"Rules error. File: {bad}. Line: 2. "),
        ({"rules": [str(outer)]}, f"{outer}: Rules error. File: {bad}. Line: 2. "),
    ]
    for options, begin in cases:
        with pytest.raises(ConfigurationError) as raised:
            ModSecurity(**options)
        assert str(raised.value).startswith(f"ModSecurity: {begin}")
        assert "reference missing" not in str(raised.value)


def test_responses_are_not_asked_for_unless_they_are_judged() -> None:
    assert EventType.RESPONSE_BODY_CHUNK not in ModSecurity(text=EVIL).events
    assert EventType.RESPONSE_BODY_CHUNK in ModSecurity(text=EVIL, responses=True).events


@pytest.mark.slow
async def test_it_runs_in_a_process_of_its_own() -> None:
    installed()
    with tempfile.TemporaryDirectory(prefix="waf-") as place:
        (Path(place) / "served_waf.py").write_text(
            "from asgi_agents.agents import ModSecurity\nwaf = ModSecurity(crs='/usr/share/modsecurity-crs')\n"
        )
        address = f"unix://{place}/waf.sock"
        path = os.pathsep.join(filter(None, (place, str(ROOT), os.environ.get("PYTHONPATH"))))
        process = PythonProcess(
            Path(place) / "log", ["asgi_agents.serve", "served_waf:waf", "--bind", address], {"PYTHONPATH": path}
        )
        process.start()
        try:
            until(lambda: "listening on" in process.said, told=lambda: process.said)
            app = App()
            waf = AgentConfig("waf", address, timeout=30.0)
            assert (await ask(app, waf, client=get("/?q=<script>alert(1)</script>"))).status == 403
            assert (await ask(app, waf, client=post(b"q=1%27+or+1%3D1--+-", FORM_TYPE))).status == 403
            assert (await ask(app, waf, client=get("/?q=hello"))).status == 200
        finally:
            process.end()


def test_the_engine_is_imported_when_an_agent_is_made() -> None:
    code = "import sys, asgi_agents.agents.modsecurity\nprint('libmodsecurity' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
