"""Bans hit who has earned them, and nobody else."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Router
from starlette.types import ASGIApp

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.agents import IpBan
from tests.support.servers import serve

from .raw import answer_of, connected

AFTER: Final = 3
ATTACKER: Final = "203.0.113.66"
VICTIM: Final = "192.0.2.7"
DECOY: Final = "/.env"
#: An app whose pages ask this one.
APP: Final = "https://app.shop.example"
HOSTILE_PAGE: Final = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
VISIT: Final = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


class Site:
    """A guarded app behind a proxy that appends the address that it was asked from."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self._url = url.rstrip("/")
        self._client = client

    def ask(self, ip: str, path: str = "/", written: str = "", **headers: str) -> int:
        """The status of the answer to a client with that address, which has written such a header itself."""
        told = f"{written}, {ip}" if written else ip
        return self._client.get(f"{self._url}{path}", headers={**headers, "x-forwarded-for": told}).status_code

    def offend(self, ip: str, **options: Any) -> list[int]:
        """Ask for what is not there, once more than is needed for a ban."""
        return [self.ask(ip, f"/{number}.php", **options) for number in range(AFTER + 1)]


@contextmanager
def site(server: dict[str, Any]) -> Iterator[Site]:
    router = Router()
    router.add_route("/", hello)
    with serve(guarded(router), proxy_headers=False, **server) as url, httpx.Client() as client:
        yield Site(url, client)


def guarded(app: ASGIApp) -> AgentMiddleware:
    ban = IpBan(after=AFTER, within=3600, duration=3600, decoys=[DECOY], origins=[APP], trusted_proxies=["127.0.0.1"])
    return AgentMiddleware(app, agents=[AgentConfig("ban", ban, timeout=30.0)])


def test_nobody_can_have_others_banned(server: dict[str, Any]) -> None:
    with site(server) as shop:
        # By writing their address.
        assert shop.offend(ATTACKER, written=VICTIM) == [404] * AFTER + [403]
        assert shop.ask("203.0.113.67", DECOY, written=VICTIM) == 403
        # By their request id.
        named = {"x-request-id": "known", "x-correlation-id": "known"}
        assert shop.ask(VICTIM, **named) == 200
        assert shop.offend("203.0.113.68", **named) == [404] * AFTER + [403]
        assert shop.ask(VICTIM, **named) == 200
        # By a page that their browser shows.
        for path in (DECOY, *(f"/{number}.php" for number in range(2 * AFTER))):
            assert shop.ask(VICTIM, path, **HOSTILE_PAGE) == 403
        for own in ("none", "same-origin"):
            assert shop.ask(VICTIM, **{"sec-fetch-site": own}) == 200
        # Nor from what an app of another origin asks here, or where links and log-ins lead.
        assert shop.ask(VICTIM, origin=APP, **{"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}) == 200
        assert shop.ask(VICTIM, **VISIT) == 200


def test_a_page_can_send_its_visitors_to_where_they_are_banned(server: dict[str, Any]) -> None:
    with site(server) as shop:
        assert shop.ask(VICTIM, DECOY, **VISIT) == 403
        assert shop.ask(VICTIM, **VISIT) == 403
        # That refuses visits by links alone. Of a link in a mail browsers say what they say of a typed address.
        assert shop.ask(VICTIM, **{**VISIT, "sec-fetch-site": "same-origin"}) == 200
        assert shop.ask(VICTIM, DECOY, **{**VISIT, "sec-fetch-site": "none"}) == 403
        assert shop.ask(VICTIM) == 403


def test_of_guesses_at_a_time_no_more_are_answered_than_in_turn(server: dict[str, Any]) -> None:
    """The app has them all, as it was asked before anybody was banned. What it has found out nobody is told."""
    guesses, tried, all_there = 40, list[bytes](), anyio.Event()

    async def log_in(request: Request) -> PlainTextResponse:
        guess = await request.body()
        tried.append(guess)
        if len(tried) == guesses:
            all_there.set()
        await all_there.wait()
        return PlainTextResponse("welcome", 200 if guess == tried[-1] else 404)

    router = Router()
    router.add_route("/", log_in, methods=["POST"])
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-forwarded-for: %b\r\ncontent-length: 4\r\n\r\n"
    with serve(guarded(router), proxy_headers=False, **server) as url, ExitStack() as stack:
        connections = [stack.enter_context(connected(url)) for _ in range(guesses)]
        for number, connection in enumerate(connections):
            connection.sendall(head % ATTACKER.encode() + b"%04d" % number)
        statuses = [answer_of(connection).split(b" ")[1] for connection in connections]
    assert len(tried) == guesses
    assert statuses.count(b"404") == AFTER
    # The right one is refused like the others, unless it was among the first.
    assert statuses.count(b"403") in (guesses - AFTER, guesses - AFTER - 1)


def test_whoever_is_banned_stays_so_whatever_it_writes(server: dict[str, Any]) -> None:
    with site(server) as shop:
        for ip, same in ((ATTACKER, f"::ffff:{ATTACKER}"), ("2001:db8::1", "2001:db8::ffff:2")):
            # What says that a page elsewhere has asked hides nothing for long.
            assert shop.offend(ip, **{"sec-fetch-site": "cross-site"}) == [404] * AFTER + [403]
            assert shop.offend(ip) == [404] * AFTER + [403]
            assert shop.ask(ip, written=VICTIM) == 403
            assert shop.ask(same) == 403
            for site_of_page in ("none", "same-origin", "same-site", "cross-site", ""):
                assert shop.ask(ip, **{"sec-fetch-site": site_of_page}) == 403
            assert shop.ask(ip, origin="https://shop.example", host="shop.example") == 403
        # Decoys in other spellings.
        for number, path in enumerate(("/.env", "/%2eenv", "/%2E%65nv?a=b", "//.env", "/%2e/.env", "/a/%2e%2e/.env")):
            assert shop.ask(f"198.51.100.{number}", path) == 403
            assert shop.ask(f"198.51.100.{number}") == 403
        assert shop.ask(VICTIM) == 200


def test_who_shares_an_address_shares_its_ban(server: dict[str, Any]) -> None:
    with site(server) as shop:
        assert shop.offend(VICTIM) == [404] * AFTER + [403]
        assert shop.ask(VICTIM, **{"user-agent": "another"}) == 403
        assert shop.offend("2001:db8::1") == [404] * AFTER + [403]
        assert shop.ask("2001:db8::2") == 403
        assert shop.ask("2001:db8:0:1::2") == 200
