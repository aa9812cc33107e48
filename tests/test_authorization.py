from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from asgi_agents.errors import ConfigurationError
from asgi_agents.observability.authorization import refusal, require_authorize

NOT_TRUE: list[Any] = [False, None, 0, 1, "", "yes", (), (True,), {}, b"", 1.0, NotImplemented, object()]


def named(answer: Any) -> str:
    """The name of a test is the same in every process: no address is part of it."""
    return "an object" if type(answer) is object else repr(answer)


def request(headers: dict[str, str] | None = None) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})


def saying(answer: Any) -> Callable[[Request], Any]:
    return lambda request: answer


def saying_later(answer: Any) -> Callable[[Request], Awaitable[Any]]:
    async def authorize(request: Request) -> Any:
        await checkpoint()
        return answer

    return authorize


class Asked:
    """A callable that is no function."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        return self._answer


class Maybe:
    """Awaitable, but no coroutine."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        yield from checkpoint().__await__()
        return self._answer


@pytest.fixture(params=[saying, saying_later, Asked, lambda answer: saying(Maybe(answer))])
def style(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """How an application may say it."""
    style: Callable[[Any], Any] = request.param
    return style


async def test_where_nobody_is_asked_everyone_may() -> None:
    assert await refusal(None, request()) is None


async def test_true_lets_in(style: Callable[[Any], Any]) -> None:
    assert await refusal(style(True), request()) is None


@pytest.mark.parametrize("answer", NOT_TRUE, ids=named)
async def test_anything_but_true_is_refused(style: Callable[[Any], Any], answer: Any) -> None:
    refused = await refusal(style(answer), request())

    assert refused is not None
    assert (refused.status_code, refused.body) == (403, b"Forbidden")


@pytest.mark.parametrize("response", [RedirectResponse("/login"), JSONResponse({}, 401), Response(status_code=200)])
async def test_a_response_is_what_refuses(style: Callable[[Any], Any], response: Response) -> None:
    assert await refusal(style(response), request()) is response


async def test_it_is_asked_about_the_request() -> None:
    asked = Asked(True)
    about = request({"authorization": "Bearer x"})

    await refusal(asked, about)

    assert asked.requests == [about]


async def test_what_it_raises_is_raised() -> None:
    def authorize(request: Request) -> bool:
        raise PermissionError("database is down")

    async def authorize_later(request: Request) -> bool:
        await checkpoint()
        raise PermissionError("database is down")

    for each in (authorize, authorize_later):
        with pytest.raises(PermissionError, match="database is down"):
            await refusal(each, request())


async def test_it_can_be_cancelled() -> None:
    async def authorize(request: Request) -> bool:
        await anyio.sleep_forever()
        return True

    with anyio.move_on_after(0.01) as scope:
        await refusal(authorize, request())
    assert scope.cancelled_caught


@pytest.mark.parametrize("authorize", [True, False, "admin", 5, ["admin"], object()])
def test_what_cant_be_asked_is_a_configuration_error(authorize: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Here: authorize=.*, expected a callable that takes a request$"):
        require_authorize("Here", authorize)


@pytest.mark.parametrize("authorize", [None, saying(True), Asked(True), Request])
def test_what_can_be_asked_is_fine(authorize: object) -> None:
    require_authorize("Here", authorize)
