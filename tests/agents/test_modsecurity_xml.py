"""XML: what apps read of it, rules are shown, and it takes the time that its length is worth."""

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from xml.etree import ElementTree

import pytest

from asgi_agents import AgentResponse, AuditRecord
from asgi_agents.agents import ModSecurity
from asgi_agents.testing import request_headers_event
from tests.support.asgi import App, Client
from tests.support.examples import examples
from tests.unjudged.asking import ask, config

pytest.importorskip("libmodsecurity", reason="the engine is not built for this platform")

from asgi_agents.agents.modsecurity_transaction import Transaction

EVIL = "evil"
RULES = f'SecRule XML:/*|XML://@* "@contains {EVIL}" "id:7,phase:2,deny,log"'
WAF = ModSecurity(text=RULES)


def asked(data: bytes | Sequence[bytes], waf: ModSecurity = WAF, kind: str = "text/xml") -> AgentResponse:
    pieces = [data] if isinstance(data, bytes) else data
    headers = {"content-type": [kind], "transfer-encoding": ["chunked"]}
    transaction = Transaction(waf._rules, request_headers_event("POST", headers=headers))
    answer = transaction.request_head()
    for at, piece in enumerate(pieces):
        if answer.is_allow or answer.needs_more:
            answer = transaction.request_body(piece, at == len(pieces) - 1)
    return answer


DOCTYPES = [
    "<!DOCTYPE a>",
    '<!DOCTYPE a SYSTEM "x">',
    '<!DOCTYPE a PUBLIC "x" "y">',
    '<!DOCTYPE a [<!ATTLIST a b CDATA "evil">]>',
    '<!DOCTYPE a [<!ENTITY e "evil">]>',
    '<!DOCTYPE a [<!ENTITY % e SYSTEM "x"> %e;]>',
    "<!DOCTYPE a [<!ELEMENT a (b|c)>]>",
    "<!DOCTYPE\n\ta\n[ ]>",
]
KINDS = ["text/xml", "application/soap+xml; charset=utf-8", "image/svg+xml"]
NO_DOCTYPES = [
    "<!-- <!DOCTYPE a> --><a/>",
    "<a><![CDATA[<!DOCTYPE a>]]></a>",
    "<a b='&lt;!DOCTYPE a>'/>",
    "<?b <!DOCTYPE a>?><a/>",
]


@pytest.mark.parametrize("doctype", DOCTYPES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
async def test_a_document_type_is_refused_wherever_it_is_cut(doctype: str, encoding: str) -> None:
    for before in ("", "\n", "<!-- a --><?b c?>"):
        data = f"{before}{doctype}<a/>".encode(encoding)
        for pieces in ([data], *([data[:at], data[at:]] for at in range(1, len(data)))):
            assert list(asked(pieces, kind=KINDS[len(before) % 3]).audit.rule_ids) == ["99118"]


@pytest.mark.parametrize("text", NO_DOCTYPES)
async def test_what_only_looks_like_a_document_type_passes(text: str) -> None:
    assert asked(text.encode()).is_allow


async def test_rules_say_what_is_done_about_a_document_type() -> None:
    records: list[AuditRecord] = []
    data = (DOCTYPES[3] + "<a/>").encode()
    for first, status in (("", 400), ("SecRuleEngine DetectionOnly", 200), ("SecRuleRemoveById 99118", 200)):
        app, waf = App(), ModSecurity(text=f"{first}\n{RULES}")
        client = Client("POST", headers=[(b"content-type", b"text/xml")], body=[data[:20], data[20:]])
        await ask(app, config(waf), client=client, on_audit=records.append)
        assert (client.status, app.calls) == (status, status == 200)
    ids = [[found for answer in record.answers for found in answer.rule_ids] for record in records]
    assert ids == [["99118"], ["99118"], []]


def generated(random: Random) -> Iterator[bytes]:
    """XML with and without a document type, which has the word somewhere, or lets it be made."""
    while True:
        subset = "".join(
            random.choices(
                [
                    *('<!ATTLIST a b CDATA "evil">', '<!ATTLIST c d CDATA #IMPLIED e CDATA #FIXED "evil">'),
                    *('<!ENTITY e "evil">', '<!ENTITY f "&#101;vi"><!ENTITY e "&f;l">', "<!ELEMENT a ANY>"),
                ],
                k=random.randint(0, 3),
            )
        )
        doctype = random.choice(["", "", f"<!DOCTYPE a [{subset}]>"])
        within = random.choices(
            [
                *("evil", "ev<b/>il", "&#101;vil", "<![CDATA[ev]]>il", "ev<!-- -->il", "<c/>", "<c d='1'/>", "1"),
                *("<b d='e&#118;il'/>", "<b xmlns:x='u:1' x:y='evil'/>", "ev<?b c?>il", "<c>e</c>"),
                *(["&e;", "<c d='&e;'/>"] if "ENTITY" in doctype else []),
            ],
            k=random.randint(1, 4),
        )
        yield f"{doctype}<a>{''.join(within)}</a>".encode()


def test_rules_are_shown_all_texts_and_attributes_that_an_app_reads() -> None:
    for data in islice(generated(Random(1)), examples(1000)):  # noqa: S311 - no secret
        root = ElementTree.fromstring(data)  # noqa: S314 - as apps do
        read = ["".join(root.itertext()), *(value for each in root.iter() for value in each.attrib.values())]
        if any(EVIL in text for text in read):
            assert not asked(data).is_allow, data
        else:
            assert asked(data).is_allow or b"<!DOCTYPE" in data, data


SECRET = "password=hunter2"
#: What apps read, and the engine's reader of XML says something of.
SAID_SOMETHING_OF = {
    "deep": "<a>" * 300 + SECRET + "</a>" * 300,
    "a-long-name": f"<a{'b' * 60_000}>{SECRET}</a{'b' * 60_000}>",
    "a-long-value": f"<a b='{SECRET}{'b' * 10_000_001}'/>",
    "an-identifier": f"<a xml:id='{SECRET}'/>",
    "the-same-identifier": f"<a><b xml:id='hunter2'>{SECRET}</b><b xml:id='hunter2'/></a>",
    "blanks": f"<a xml:space='{SECRET}'/>",
    "a-namespace": f"<a xmlns='{SECRET}'/>",
    "a-namespace-of-a-prefix": f"<a xmlns:b='{SECRET}'/>",
    "no-uri": f"<a xmlns:b='a b:{SECRET}'/>",
    "a-language": f"<a xml:lang='{SECRET}'/>",
    "an-instruction": f"<a><?XML {SECRET}?></a>",
    "a-stylesheet": f"<?xml-stylesheet {SECRET}?><a/>",
    "a-document-type": f"<!DOCTYPE a [<!ATTLIST a b ID '{SECRET}'>]><a/>",
    "an-entity": f"<!DOCTYPE a SYSTEM 'x'><a>{SECRET} &b;</a>",
}


@pytest.mark.parametrize("name", SAID_SOMETHING_OF)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
async def test_nothing_of_xml_is_printed(name: str, encoding: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In this thread, and in those of the agent."""
    data = SAID_SOMETHING_OF[name].encode(encoding)
    asked(data)
    client = Client("POST", headers=[(b"content-type", b"text/xml")], body=data)
    await ask(App(), config(WAF, max_request_body_bytes=50_000_000), client=client)
    assert client.status in (200, 400)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_of_a_body_that_rules_of_ones_own_say_is_xml(capfd: pytest.CaptureFixture[str]) -> None:
    rule = 'SecAction "id:1,phase:1,pass,nolog,ctl:requestBodyProcessor=XML"'
    waf = ModSecurity(text=f"{rule}\n{RULES}")
    for data in (f"<a>{SECRET}</b>", SAID_SOMETHING_OF["an-entity"]):
        asked(data.encode(), waf, "text/plain")
    assert capfd.readouterr() == ("", "")
