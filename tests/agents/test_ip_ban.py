"""IpBan by itself, with a clock of its own."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from itertools import product
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from asgi_agents import AgentConfig, AgentResponse, Block, ConfigurationError, EventType
from asgi_agents.agent import may_suspend
from asgi_agents.agents import IpBan
from asgi_agents.agents.askers import Askers
from asgi_agents.agents.crowds import SHARES
from asgi_agents.agents.ip_ban import MAX_ADDRESSES
from asgi_agents.testing import (
    request_complete_event,
    request_headers_event,
    request_metadata,
    response_headers_event,
)
from tests.support.asgi import App, Client
from tests.unjudged.asking import ask

from .clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asgi_agents.agents.bans.time", SimpleNamespace(monotonic=clock))
    return clock


async def begin(
    agent: IpBan, ip: str, uri: str = "/", name: str = "n", headers: Mapping[str, str] = MappingProxyType({})
) -> AgentResponse | None:
    metadata = request_metadata(client_ip=ip, correlation_id=name)
    return await agent.on_request_headers(request_headers_event(uri=uri, metadata=metadata, headers=headers))


async def end(agent: IpBan, status: int = 404, name: str = "n") -> AgentResponse | None:
    return await agent.on_request_complete(request_complete_event(correlation_id=name, status=status))


async def answer(agent: IpBan, status: int = 404, name: str = "n") -> AgentResponse | None:
    """What becomes of the app's answer to a request that is under way."""
    return await agent.on_response_headers(response_headers_event(correlation_id=name, status=status))


async def passes(
    agent: IpBan, ip: str, uri: str = "/", status: int = 404, headers: Mapping[str, str] = MappingProxyType({})
) -> bool:
    """Whether a request gets through, which ends with that status then."""
    answer = await begin(agent, ip, uri, headers=headers)
    if answer is None:
        await end(agent, status)
    return answer is None


async def passed(agent: IpBan, ip: str, number: int, **options: Any) -> int:
    """How many of so many requests get through."""
    return sum([await passes(agent, ip, **options) for _ in range(number)])


def retry_after(answer: AgentResponse | None) -> str:
    assert answer is not None
    assert isinstance(answer.decision, Block)
    assert answer.decision.status == 403
    assert answer.decision.headers is not None
    return answer.decision.headers["retry-after"]


# When


async def test_so_many_within_the_window_lead_to_a_ban_that_ends(clock: Clock) -> None:
    agent = IpBan(after=3, within=60, duration=600)
    assert await passed(agent, "192.0.2.7", 9) == 3
    assert await passes(agent, "192.0.2.8")
    clock.now += 599.5
    assert retry_after(await begin(agent, "192.0.2.7")) == "1"
    clock.now += 0.5
    # What led to it does not count again.
    assert await passed(agent, "192.0.2.7", 9) == 3


async def test_what_has_led_to_a_ban_does_not_lead_to_the_next(clock: Clock) -> None:
    agent = IpBan(after=3, within=3600, duration=60)
    for _ in range(3):
        assert await passed(agent, "192.0.2.7", 9) == 3
        clock.now += 60


async def test_a_ban_says_how_long_it_lasts(clock: Clock) -> None:
    agent = IpBan(after=1, duration=600)
    assert await passes(agent, "192.0.2.7")
    clock.now += 10.5
    assert retry_after(await begin(agent, "192.0.2.7")) == "590"


async def test_the_window_moves_so_that_none_of_its_borders_can_be_used(clock: Clock) -> None:
    agent = IpBan(after=4, within=60)
    for seconds in (50, 8, 1):
        assert await passes(agent, "192.0.2.7")
        clock.now += seconds
    assert await passes(agent, "192.0.2.7")
    # Four within 59 seconds, also where a minute of the clock has begun meanwhile.
    assert not await passes(agent, "192.0.2.7")


async def test_what_is_older_than_the_window_does_not_count(clock: Clock) -> None:
    agent = IpBan(after=2, within=60)
    for _ in range(20):
        assert await passes(agent, "192.0.2.7")
        clock.now += 60


async def test_what_the_agent_has_refused_makes_no_ban_longer(clock: Clock) -> None:
    agent = IpBan(after=1, duration=600, statuses=[403, 404])
    assert await passes(agent, "192.0.2.7")
    for _ in range(10):
        clock.now += 59
        assert not await passes(agent, "192.0.2.7")
        # It is told of the end of what it has refused as well.
        await end(agent, 403)
    clock.now += 10
    assert await passes(agent, "192.0.2.7", status=200)


async def test_only_the_given_statuses_count() -> None:
    agent = IpBan(after=1, statuses=[401])
    for status in (101, 200, 302, 403, 404, 429, 499, 500, 503):
        assert await passes(agent, "192.0.2.7", status=status)
    assert await passes(agent, "192.0.2.7", status=401)
    assert not await passes(agent, "192.0.2.7")


async def test_a_clock_that_is_set_back_bans_nobody_for_longer_than_it_would(clock: Clock) -> None:
    agent = IpBan(after=2, within=60, duration=600)
    assert await passes(agent, "192.0.2.7")
    clock.now -= 30
    assert await passed(agent, "192.0.2.7", 3) == 1
    clock.now += 600
    assert await passes(agent, "192.0.2.7")


# What is under way when a ban begins


@pytest.mark.parametrize("told", [answer, end])
async def test_what_was_under_way_makes_a_ban_no_longer_and_is_logged_once(
    clock: Clock, caplog: pytest.LogCaptureFixture, told: Callable[..., Awaitable[AgentResponse | None]]
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    agent = IpBan(after=3, within=3600, duration=600)
    for number in range(100):
        assert await begin(agent, "192.0.2.7", name=str(number)) is None
    for number in range(50):
        await told(agent, name=str(number))
    assert caplog.messages == ["IpBan: 192.0.2.7 is banned for 600 s (status:404)"]
    clock.now += 599.5
    for number in range(50, 100):
        await told(agent, name=str(number))
    assert retry_after(await begin(agent, "192.0.2.7")) == "1"
    clock.now += 0.5
    assert len(caplog.messages) == 1
    # Nor does it count for the next one.
    assert await passed(agent, "192.0.2.7", 9) == 3


@pytest.mark.parametrize("first", [{}, {"sec-fetch-site": "cross-site"}])
async def test_nothing_counts_for_pages_elsewhere_while_the_client_itself_is_banned(first: dict[str, str]) -> None:
    agent = IpBan(after=2, decoys=["/.env"])
    page = {"sec-fetch-site": "cross-site"}
    for number in range(4):
        assert await begin(agent, "192.0.2.7", name=str(number), headers=page) is None
    assert await begin(agent, "192.0.2.7", "/.env", headers=first) is not None
    for number in range(4):
        assert (await end(agent, name=str(number))) is None
    await agent.lift("192.0.2.7")
    assert await passes(agent, "192.0.2.7", status=200, headers=page)


async def test_of_guesses_at_a_time_as_many_are_answered_as_lead_to_a_ban() -> None:
    agent = IpBan(after=5, statuses=[401])
    for number in range(400):
        assert await begin(agent, "192.0.2.7", name=str(number)) is None
        assert await begin(agent, "192.0.2.8", name=f"other {number}") is None
    answers = [await answer(agent, 401, str(number)) for number in range(400)]
    assert [each is None or each.is_allow for each in answers] == [True] * 5 + [False] * 395
    assert retry_after(answers[-1]) == "600"
    # Others are answered still.
    assert await answer(agent, 401, "other 1") is None


async def test_who_is_banned_does_not_see_which_guess_was_right() -> None:
    agent = IpBan(after=2, statuses=[401])
    for name in ("wrong", "wrong too", "right"):
        assert await begin(agent, "192.0.2.7", name=name) is None
    for name in ("wrong", "wrong too"):
        assert (allowed := await answer(agent, 401, name)) is None or allowed.is_allow
        assert await end(agent, 401, name) is None
    refused = await answer(agent, 200, "right")
    assert retry_after(refused) == "600"
    assert refused is not None
    assert [*refused.audit.reason_codes] == ["banned"]


async def test_an_answer_counts_once() -> None:
    """At its head, and if that was no reason, by what the client was sent: another agent may deny it behind that."""
    agent = IpBan(after=4, statuses=[403, 404])
    for first, last, counts in ((404, 404, 1), (404, 403, 1), (200, 403, 1), (200, 200, 0), (500, 404, 1)):
        assert await begin(agent, "192.0.2.7") is None
        strikes = [await answer(agent, first), await end(agent, last)]
        assert sum(1 for each in strikes if each is not None) == (first == 500), counts
    assert await begin(agent, "192.0.2.7") is not None


async def test_what_was_refused_at_the_end_does_not_count_when_the_ban_is_over(clock: Clock) -> None:
    agent = IpBan(after=1, duration=600)
    for name in ("first", "slow"):
        assert await begin(agent, "192.0.2.7", name=name) is None
    await answer(agent, name="first")
    assert retry_after(await answer(agent, 200, "slow")) == "600"
    clock.now += 600
    assert await end(agent, 403, "slow") is None
    assert await passes(agent, "192.0.2.7", status=200)


async def test_what_was_under_way_is_forgotten_with_a_ban_that_is_lifted() -> None:
    agent = IpBan(after=1)
    for name, ip in (("slow", "192.0.2.7"), ("slower", "192.0.2.7"), ("quick", "192.0.2.7"), ("other", "192.0.2.8")):
        assert await begin(agent, ip, name=name) is None
    await end(agent, name="quick")
    await agent.lift("192.0.2.7")
    await end(agent, name="slow")
    assert await answer(agent, name="slower") is None
    assert await passes(agent, "192.0.2.7", status=200)
    await end(agent, name="other")
    assert not await passes(agent, "192.0.2.8")


async def test_where_no_status_counts_no_request_is_followed() -> None:
    agent = IpBan(statuses=[], decoys=["/.env"])
    assert agent.events == {EventType.CONFIGURE, EventType.REQUEST_HEADERS}
    assert await begin(agent, "192.0.2.7") is None
    assert not agent._under_way
    assert {EventType.RESPONSE_HEADERS, EventType.REQUEST_COMPLETE} < IpBan().events


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
async def test_an_address_of_ipv6_is_banned_by_its_network(first: str, second: str, together: bool) -> None:
    agent = IpBan(after=2)
    assert await passes(agent, first)
    assert await passes(agent, second)
    assert await passes(agent, first) is not together
    assert await passes(agent, second) is not together


# Decoys


@pytest.mark.parametrize(
    ("uri", "banned"),
    [
        ("/wp-login.php", True),
        ("/wp-login.php?a=b", True),
        ("/%77p-login%2ephp", True),
        ("/.git/config", True),
        ("/.git/a%2fb", True),
        ("/.git", False),
        ("/wp-login.php/", False),
        ("/?/wp-login.php", False),
        ("/a/wp-login.php", False),
        ("/item/12", True),
        ("/item/ab", False),
        # What file systems and servers take for the same.
        ("//wp-login.php", True),
        ("/./wp-login.php", True),
        ("/a/../wp-login.php", True),
        ("/a/%2e%2e/wp-login.php?b", True),
        ("/../wp-login.php", True),
        ("/.//.git/./config", True),
        ("/.git/../a", True),
        ("//wp-login.php/", False),
        ("/a//wp-login.php", False),
        # A line break ends no path.
        ("/.git/%0aconfig", True),
        ("/.git/config%0a", True),
        ("/%0a/.git/config", False),
        # Capitals and what follows a semicolon make another path.
        ("/WP-LOGIN.php", False),
        ("/wp-login.php;a=b", False),
        ("/wp-login.php%00", False),
    ],
)
async def test_decoys_are_patterns_as_routes_have_them(uri: str, banned: bool) -> None:
    agent = IpBan(decoys=["/wp-login.php", "/.git/{rest:path}", "/item/{number:int}"])
    answer = await begin(agent, "192.0.2.7", uri)
    if banned:
        assert retry_after(answer) == "600"
    assert (await begin(agent, "192.0.2.7") is not None) is banned
    assert await begin(agent, "192.0.2.8") is None


async def test_networks_that_are_allowed_are_never_banned() -> None:
    agent = IpBan(after=1, decoys=["/.env"], allow=["192.0.2.0/24", "2001:db8::/32"])
    for ip in ("192.0.2.7", "2001:db8::1"):
        assert await passed(agent, ip, 3) == 3
        assert await passes(agent, ip, "/.env")
        assert await passes(agent, ip)
    assert not await passes(agent, "203.0.113.1", "/.env")


async def test_a_ban_can_be_lifted(clock: Clock) -> None:
    agent = IpBan(after=2, decoys=["/.env"])
    for ip in ("192.0.2.7", "2001:db8::1"):
        assert not await passes(agent, ip, "/.env")
        assert not await passes(agent, ip, "/.env", headers={"sec-fetch-site": "cross-site"})
        await agent.lift(ip)
        assert await passes(agent, ip)
        await agent.lift(ip)
        # What led there is forgotten as well.
        assert await passed(agent, ip, 3) == 2
        # As an object it is the same.
        assert not await passes(agent, ip, "/.env")
        await agent.lift(ip_address(ip))
        assert await passes(agent, ip, status=200)
    with pytest.raises(ValueError, match="'office' is no address"):
        await agent.lift("office")
    with pytest.raises(ValueError, match="3221225991 is no address"):
        await agent.lift(0xC0000207)  # type: ignore[arg-type]


# Whose address


async def test_the_address_is_that_of_the_client_behind_trusted_proxies() -> None:
    agent = IpBan(after=2, trusted_proxies=["10.0.0.0/8"])
    for _ in range(2):
        assert await passes(agent, "10.0.0.1", headers={"x-forwarded-for": "203.0.113.1, 192.0.2.7"})
    assert not await passes(agent, "10.0.0.2", headers={"x-forwarded-for": "192.0.2.7"})
    assert await passes(agent, "10.0.0.1", headers={"x-forwarded-for": "203.0.113.1"})
    assert await passes(agent, "10.0.0.1", headers={"x-forwarded-for": "192.0.2.7, 203.0.113.1"})


async def test_nobody_is_banned_by_an_address_that_a_client_has_made_up() -> None:
    agent = IpBan(after=2)
    for number in range(3):
        assert await passes(agent, "192.0.2.7", headers={"x-forwarded-for": f"203.0.113.{number}"}) is (number < 2)
    for number in range(3):
        assert await passes(agent, f"203.0.113.{number}")


@pytest.mark.parametrize("peer", ["", "testclient", "unknown"])
async def test_a_client_without_an_address_is_denied_and_has_nobody_else_banned(peer: str) -> None:
    agent = IpBan(after=1, decoys=["/.env"])
    for uri in ("/", "/.env"):
        answer = await begin(agent, peer, uri)
        assert answer is not None
        assert [*answer.audit.reason_codes] == ["address_unknown"]
    assert await passes(agent, "192.0.2.7")


@pytest.mark.parametrize("peer", [None, ("", 1), ("testclient", 1)])
@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_a_scope_without_a_client_is_waved_through_in_no_failure_mode(
    peer: Sequence[object] | None, mode: Any
) -> None:
    client = Client()
    client.scope["client"] = peer
    assert (await ask(App(), AgentConfig("ban", IpBan(), failure_mode=mode), client=client)).status == 403


async def test_a_proxy_that_is_not_trusted_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asgi_agents")
    for agent, ip in ((IpBan(), "8.8.8.8"), (IpBan(trusted_proxies=["10.0.0.0/8"]), "10.0.0.1"), (IpBan(), "10.0.0.1")):
        assert not caplog.text
        for _ in range(2):
            await begin(agent, ip, headers={"x-forwarded-for": "10.9.9.9" if ip == "8.8.8.8" else "192.0.2.7"})
    await begin(IpBan(), "100.64.0.9", headers={"x-forwarded-for": "192.0.2.7"})
    assert [text.partition(" and is not in trusted_proxies;")[0] for text in caplog.messages] == [
        "IpBan: 10.0.0.1 sends x-forwarded-for",
        "IpBan: 100.64.0.9 sends x-forwarded-for",
    ]


# Pages of others


HOSTILE_PAGE = {"sec-fetch-site": "cross-site"}
OWN_PAGE = {"origin": "https://shop.example", "host": "shop.example"}


@pytest.mark.parametrize(
    "headers",
    [
        HOSTILE_PAGE,
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": ""},
        # A page may have as many frames as it likes.
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        # One that says that it is of the site, where the browser says that it is none of its pages'.
        {"sec-fetch-site": "cross-site", "origin": "http://shop.example", "host": "shop.example"},
        # As browsers send it that do not say more with a handshake.
        {"origin": "https://evil.example", "host": "shop.example"},
        {"origin": "null", "host": "shop.example"},
    ],
)
async def test_a_page_of_others_can_not_have_its_visitors_banned_from_the_site(headers: dict[str, str]) -> None:
    agent = IpBan(after=2, decoys=["/.env"])
    assert not await passes(agent, "192.0.2.7", "/.env", headers=headers)
    assert await passed(agent, "192.0.2.8", 3, headers=headers) == 2
    for ip in ("192.0.2.7", "192.0.2.8"):
        # What that page has them ask is refused, and nothing else is.
        assert not await passes(agent, ip, headers=headers)
        for own in ({}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}):
            assert await passes(agent, ip, status=200, headers=own)
        assert await passes(agent, ip, status=200, headers=OWN_PAGE)


async def test_who_pretends_to_be_sent_by_a_page_gains_two_bans_more_and_no_more() -> None:
    agent = IpBan(after=5, origins=[APP])
    pretended = [
        dict(zip(("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"), values, strict=True))
        for values in product(
            ("cross-site", "same-site", "same-origin", "none", "x"), ("navigate", "cors", "x"), ("document", "x")
        )
    ]
    pretended += [{**headers, "origin": origin} for headers in pretended for origin in (APP, "https://x.example")]
    tried = sum([await passed(agent, "192.0.2.7", 10, headers=headers) for headers in pretended])
    assert 0 < tried <= 15
    assert not await passes(agent, "192.0.2.7")
    # Whoever begins without has nothing to gain.
    assert await passed(agent, "192.0.2.8", 100) == 5
    for headers in pretended:
        assert not await passes(agent, "192.0.2.8", headers=headers)


APP = "https://app.shop.example"
OF_THE_APP = {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "origin": APP, "host": "api.shop.example"}
VISIT = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


async def test_a_page_of_others_has_nobody_banned_from_the_api_that_another_origin_of_the_site_asks() -> None:
    agent = IpBan(after=2, decoys=["/.env"], origins=[APP])
    assert not await passes(agent, "192.0.2.7", "/.env", headers={**HOSTILE_PAGE, "sec-fetch-dest": "image"})
    assert await passed(agent, "192.0.2.8", 9, headers={**HOSTILE_PAGE, "origin": "https://evil.example"}) == 2
    for ip in ("192.0.2.7", "192.0.2.8"):
        assert await passes(agent, ip, "/orders", 200, OF_THE_APP)
        # As old browsers ask, which say no more than their origin.
        assert await passes(agent, ip, "/orders", 200, {"origin": APP, "host": "api.shop.example"})
        # Another one is not meant, however much it looks like it.
        for origin in (f"{APP}.evil.example", "https://shop.example", f"{APP}:8443", "http://app.shop.example", "null"):
            assert not await passes(agent, ip, headers={**OF_THE_APP, "origin": origin})
    # What that app does counts as the client's own.
    assert not await passes(agent, "192.0.2.9", "/.env", headers=OF_THE_APP)
    assert not await passes(agent, "192.0.2.9")


async def test_links_and_redirects_that_lead_here_are_not_refused_for_what_pages_elsewhere_ask() -> None:
    agent = IpBan(after=2, decoys=["/.env"])
    assert not await passes(agent, "192.0.2.7", "/.env", headers=HOSTILE_PAGE)
    # A page may have as many frames as it likes.
    for frame in ({**VISIT, "sec-fetch-dest": "iframe"}, {**VISIT, "sec-fetch-dest": "object"}):
        assert not await passes(agent, "192.0.2.7", "/.env", headers=frame)
    assert await passes(agent, "192.0.2.7", "/auth/callback?code=x", 200, VISIT)
    assert await passes(agent, "192.0.2.7", "/auth/callback", 200, {**VISIT, "origin": "https://id.example"})
    # What a page sends its visitor to refuses such visits, and nothing else.
    assert not await passes(agent, "192.0.2.8", "/.env", headers=VISIT)
    assert not await passes(agent, "192.0.2.8", headers=VISIT)
    assert await passes(agent, "192.0.2.8", status=200)
    assert await passes(agent, "192.0.2.8", status=200, headers=HOSTILE_PAGE)
    # Of a link in a mail, browsers say that nobody's page has led here.
    assert not await passes(agent, "192.0.2.9", "/.env", headers={**VISIT, "sec-fetch-site": "none"})
    assert not await passes(agent, "192.0.2.9")


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://shop.example", "shop.example", True),
        ("https://shop.example", "shop.example:443", True),
        ("https://shop.example:443", "shop.example", True),
        ("http://shop.example", "shop.example:80", True),
        ("https://SHOP.example", "shop.EXAMPLE", True),
        ("https://shop.example:8443", "shop.example:8443", True),
        ("https://[2001:db8::443]", "[2001:db8::443]:443", True),
        ("https://shop.example", "shop.example:80", False),
        ("https://shop.example", "shop.example:8443", False),
        ("https://shop.example:444", "shop.example", False),
        ("https://[2001:db8::443]", "[2001:db8:]", False),
        ("https://shop.example", "backend:8000", False),
        ("https://shop.example", None, False),
        ("null", "null", False),
        ("", "", False),
    ],
)
async def test_an_origin_is_the_hosts_however_the_two_are_written(origin: str, host: str | None, own: bool) -> None:
    headers = {"origin": origin} | ({} if host is None else {"host": host})
    assert Askers([]).of(request_headers_event(headers=headers)) == ("own" if own else "elsewhere")
    # Behind a proxy that writes another host it can be named.
    if origin.startswith("http"):
        assert Askers([origin.upper()]).of(request_headers_event(headers=headers)) == "own"


# Ids


async def test_nobody_is_banned_for_a_request_that_another_has_given_the_same_id() -> None:
    """Ids are unique within a process. A served agent may be asked by hosts that take those of clients."""
    agent = IpBan(after=1)
    for first, second in (("192.0.2.7", "203.0.113.1"), ("203.0.113.1", "192.0.2.7")):
        assert await begin(agent, first, name="x") is None
        assert await begin(agent, second, name="x") is None
        await end(agent, name="x")
        await end(agent, name="x")
    assert await passes(agent, "192.0.2.7", status=200)
    assert await passes(agent, "203.0.113.1", status=200)
    # Also where the answer to the one was counted before the other began.
    assert await begin(agent, "192.0.2.9", name="x") is None
    assert await answer(agent, name="x") is not None
    assert await begin(agent, "203.0.113.1", name="x") is None
    await end(agent, name="x")
    assert await passes(agent, "203.0.113.1", status=200)
    # One client that uses an id twice is counted.
    for _ in range(2):
        assert await begin(agent, "192.0.2.7", name="y") is None
    await end(agent, name="y")
    assert not await passes(agent, "192.0.2.7")


async def test_of_requests_that_have_ended_nothing_is_kept() -> None:
    agent = IpBan(max_addresses=10)
    for number in range(100):
        assert await begin(agent, "192.0.2.7", name=str(number)) is None
    # An agent that is down is not told of the end.
    assert len(agent._under_way) == 10
    for number in range(100):
        await end(agent, 200, name=str(number))
    assert not agent._under_way


# Memory


@pytest.mark.parametrize("room", [1000, MAX_ADDRESSES])
async def test_a_site_can_neither_free_itself_nor_have_others_banned_by_its_many_networks(
    clock: Clock, room: int
) -> None:
    agent = IpBan(after=3, max_addresses=room, decoys=["/.env"])
    assert not await passes(agent, "2001:db8:7::1", "/.env")
    assert not await passes(agent, "203.0.113.1", "/.env")
    got_through = 0
    for number in range(min(20 * room, 2**16)):
        got_through += await passes(agent, f"2001:db8:7:{number % 2**16:x}::1")
    # Half of the room, each once, a share, and what led to the ban of the rest.
    assert got_through <= room // 2 + 3
    assert not await passes(agent, "2001:db8:7::1")
    assert not await passes(agent, "2001:db8:7:ffff::1")
    assert not await passes(agent, "203.0.113.1")
    # Next door, nobody is banned for that, and all can be.
    for ip in ("2001:db8:8::1", "192.0.2.7", "2001:db9::1"):
        assert await passed(agent, ip, 9) == 3


@pytest.mark.parametrize("room", [1000, MAX_ADDRESSES])
async def test_a_site_that_is_banned_network_by_network_is_banned_whole_in_the_end(clock: Clock, room: int) -> None:
    agent = IpBan(max_addresses=room, decoys=["/.env"])
    refused = [await begin(agent, f"2001:db8:7:{number:x}::1", "/.env") for number in range(room // 2 + SHARES[48])]
    assert None not in refused
    assert not await passes(agent, "2001:db8:7:ffff::1")
    for ip in ("2001:db8:8:ffff::1", "2001:db8:0:1::1", "2001:db8:ffff::1"):
        assert await passes(agent, ip)


@pytest.mark.parametrize("room", [1000, MAX_ADDRESSES])
async def test_a_flood_that_is_over_has_no_neighbours_banned_together(clock: Clock, room: int) -> None:
    agent = IpBan(after=20, within=60, max_addresses=room)
    for number in range(room // 2):
        await passes(agent, f"2001:db8:{number % 512:x}:{number // 512:x}::1")
        await passes(agent, f"10.0.{number >> 8 & 255}.{number & 255}")
    clock.now += 86_400
    for number in range(200):
        assert await passes(agent, f"2001:db8:{number + 0x1000:x}::1")
    assert await passes(agent, "2001:db8:f000::1")


async def test_more_bans_than_there_is_room_for_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    agent = IpBan(max_addresses=10, decoys=["/.env"])
    for number in range(10):
        await begin(agent, f"192.0.2.{number}", "/.env")
    assert "more bans than max_addresses" not in caplog.text
    await begin(agent, "192.0.2.10", "/.env")
    assert "more bans than max_addresses" in caplog.text
    assert await passes(agent, "192.0.2.0")
    assert not await passes(agent, "192.0.2.1")


def test_in_memory_no_request_waits() -> None:
    agent = IpBan(after=1)
    event = request_headers_event(metadata=request_metadata(client_ip="192.0.2.7", correlation_id="n"))
    for hook in (
        agent.on_request_headers(event),
        agent.on_request_complete(request_complete_event(correlation_id="n", status=404)),
        agent.on_request_headers(event),
    ):
        with pytest.raises(StopIteration):
            hook.send(None)
    # The middleware sees that beforehand, and makes each call as one that can't.
    assert not any(may_suspend(hook) for hook in (agent.on_request_headers, agent.on_request_complete))


# Configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": 0}, "after=0, expected a whole number of at least 1"),
        ({"after": 1001}, "after=1001, expected at most 1000"),
        ({"within": 0}, "within=0, expected a number of seconds above 0"),
        ({"duration": float("inf")}, "duration=inf, expected a number of seconds above 0"),
        ({"statuses": "404"}, r"statuses='404', expected a list such as \[401, 404\]"),
        ({"statuses": 404}, "statuses=404, expected a list"),
        ({"statuses": ["404"]}, "statuses contains '404', expected 400 to 599"),
        ({"statuses": [200]}, "statuses contains 200, expected 400 to 599"),
        ({"statuses": []}, "nothing to ban for"),
        ({"statuses": [[404]]}, "statuses contains a list, expected 400 to 599"),
        ({"statuses": [404, {}]}, "statuses contains a dict, expected 400 to 599"),
        ({"statuses": None}, "statuses=None, expected a list"),
        ({"statuses": [True]}, "statuses contains True, expected 400 to 599"),
        ({"decoys": [["/.env"]]}, "decoys contains a list, expected strings"),
        ({"decoys": ["/"]}, "decoys contains '/', which honest clients ask for, expected paths such as '/.env'"),
        ({"decoys": ["/{rest:path}"]}, r"decoys contains '/\{rest:path\}', which honest clients ask for"),
        ({"decoys": ["/.env", "/{page}"]}, r"decoys contains '/\{page\}', which honest clients ask for"),
        ({"decoys": ["/{one}/{rest:path}"]}, "decoys contains .* which honest clients ask for"),
        ({"decoys": ["/%2eenv"]}, "decoys contains '/%2eenv', which matches nothing, .* expected '/.env'"),
        ({"decoys": ["/a%20b/{rest:path}"]}, "decoys contains .* which matches nothing, .* expected '/a b/"),
        ({"decoys": ["/:id"]}, r"decoys contains '/:id', where ':' stands for itself, expected '/\{id\}'"),
        ({"decoys": ["/.env?x"]}, "decoys: .*'\\?' begins a query"),
        ({"origins": APP}, "origins='https://app.shop.example', expected a list of strings"),
        ({"origins": ["app.shop.example"]}, "origins contains 'app.shop.example', expected such as 'https://app"),
        ({"origins": [f"{APP}/"]}, "origins contains 'https://app.shop.example/', expected such as"),
        ({"origins": ["*"]}, "origins contains '\\*', expected such as"),
        ({"origins": ["https://*.shop.example"]}, "origins contains 'https://\\*.shop.example', expected such as"),
        ({"origins": ["null"]}, "origins contains 'null', expected such as"),
        ({"origins": [1]}, "origins contains an int, expected strings"),
        ({"decoys": "/.env"}, "decoys='/.env', expected a list of strings"),
        ({"decoys": [".env"]}, "decoys: AgentRoute: path='.env', expected a pattern that starts with '/'"),
        ({"decoys": ["/wp-*"]}, r"decoys: AgentRoute\('/wp-\*'\): path: '\*' stands for itself"),
        ({"allow": ["office"]}, "allow contains 'office', expected an address or a network"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "trusted_proxies contains all addresses"),
        ({"trusted_proxies": ["0.0.0.0/1", "128.0.0.0/1"]}, "trusted_proxies contains all addresses"),
        ({"max_addresses": 0}, "max_addresses=0, expected a whole number of at least 1"),
        ({"storage": "http://h"}, "storage has the scheme http://, expected 'memory' or a URL with redis://"),
        ({"namespace": 1}, "namespace=1, expected text or None"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"IpBan: {message}"):
        IpBan(**options)
