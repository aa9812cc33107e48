"""The OWASP Core Rule Set where it is installed, and its own regression tests where there is a checkout of it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from asgi_agents import AgentResponse, Headers, RequestBodyChunkEvent, RequestHeadersEvent, RequestMetadata
from asgi_agents.agents import ModSecurity

#: Where Debian's package puts it.
INSTALLED = Path("/usr/share/modsecurity-crs")
FORM = "application/x-www-form-urlencoded"


def installed() -> Path:
    """Its directory. Skips the test where it is not installed."""
    if not (INSTALLED / "rules").is_dir():
        assert "REQUIRE_CRS" not in os.environ, "the Core Rule Set is missing"
        pytest.skip("there is no OWASP Core Rule Set here: apt-get install modsecurity-crs")
    return INSTALLED


def checkout() -> Path:
    """A checkout of its repository, with its tests. Skips the test where none is named."""
    given = os.environ.get("CRS_REPOSITORY")
    if given is None:
        pytest.skip("CRS_REPOSITORY names no checkout of the OWASP Core Rule Set")
    return Path(given)


@dataclass(frozen=True)
class Attack:
    """One request of its regression tests, and the rule that is to match."""

    rule_id: str
    method: str
    uri: str
    version: str
    fields: list[tuple[bytes, bytes]]
    body: bytes


def attacks(root: Path, files: str, level: int) -> Iterator[Attack]:
    """The requests that rules of this paranoia level are to match, of the rules of some files."""
    levels = _levels(root)
    for path in sorted((root / "tests" / "regression" / "tests").glob(f"{files}/*.yaml")):
        if levels.get(path.stem) != level:
            continue
        for test in yaml.safe_load(path.read_text())["tests"]:
            for stage in test["stages"]:
                # CRS 3 has one more level of names than CRS 4.
                given = stage.get("stage", stage)
                output = given["output"]
                output = output[0] if isinstance(output, list) else output
                if "log_contains" in output or output.get("log", {}).get("expect_ids"):
                    yield _attack(path.stem, given["input"])


def _levels(root: Path) -> dict[str, int]:
    """The paranoia level of each rule that has one."""
    levels = {}
    for path in (root / "rules").glob("*.conf"):
        for rule in re.split(r"\n\n+", path.read_text()):
            named, level = re.search(r'"id:(\d+),', rule), re.search(r"paranoia-level/(\d)", rule)
            if named and level:
                levels[named[1]] = int(level[1])
    return levels


def _attack(rule_id: str, given: dict[str, Any]) -> Attack:
    data = given.get("data") or ""
    body = ("\r\n".join(data) if isinstance(data, list) else data).encode()
    fields = [(name.lower().encode(), str(value).encode()) for name, value in (given.get("headers") or {}).items()]
    names = {name for name, _ in fields}
    if body and not names & {b"content-length", b"transfer-encoding"}:
        fields.append((b"content-length", b"%d" % len(body)))
    if body and b"content-type" not in names:
        fields.append((b"content-type", FORM.encode()))
    uri = (given.get("uri") or "/").encode().decode("latin-1")
    return Attack(rule_id, given.get("method") or "GET", uri, given.get("version") or "HTTP/1.1", fields, body)


async def judged(waf: ModSecurity, attack: Attack) -> AgentResponse:
    """What the agent says of it in the end."""
    metadata = RequestMetadata(
        correlation_id="a",
        request_id="a",
        client_ip="192.0.2.7",
        client_port=40000,
        protocol=attack.version,
        timestamp="2026-01-01T00:00:00Z",
    )
    headers = Headers.from_raw(attack.fields)
    event = RequestHeadersEvent(metadata=metadata, method=attack.method, uri=attack.uri, headers=headers)
    answer = await waf.on_request_headers(event)
    if attack.body and (answer.is_allow or answer.needs_more):
        chunk = RequestBodyChunkEvent(correlation_id="a", data=attack.body, is_last=True)
        answer = await waf.on_request_body_chunk(chunk)
    return answer
