"""Cookies are read as Starlette reads them, and in time that grows as they do."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import cookie_parser

from asgi_agents.agents import JwtAuth, OpenApiValidation
from asgi_agents.agents.cookies import cookies_of
from asgi_agents.agents.modsecurity_fields import request_fields_of
from asgi_agents.testing import request_headers_event

NAMES = ["a", "b", "token", ""]
VALUES = st.text(st.sampled_from(list('ab01237"\\;= \t\x85\xa0é,')), max_size=12)
CHUNK = st.one_of(
    VALUES,
    st.builds("{}={}".format, st.sampled_from(NAMES), VALUES),
    st.builds(' {} = "{}" '.format, st.sampled_from(NAMES), VALUES),
)


@given(st.lists(CHUNK, max_size=6).map(";".join))
@example('a="\\"')
@example('a="\\400\\377\\0\\08\\\\134"')
@example('a=1;a="2";=x;y;')
@example('"')
def test_they_are_what_starlette_reads(field: str) -> None:
    expected = cookie_parser(field)
    assert cookies_of(field) == expected
    for names in (["a"], ["b", "token"], [""], []):
        assert cookies_of(field, names) == {name: expected[name] for name in names if name in expected}


def hostile(length: int) -> str:
    return 'token="' + "\\" * length + '"'


async def of_jwt_auth(field: str) -> None:
    agent = JwtAuth("https://id.example/jwks", issuer="a", audience="b", cookie="token")
    await agent.on_request_headers(request_headers_event(headers={"cookie": field}))


async def of_openapi(field: str) -> None:
    parameters = [{"in": "cookie", "name": "token", "schema": {"type": "integer"}}]
    paths = {"/": {"get": {"parameters": parameters, "responses": {}}}}
    await judged(OpenApiValidation({"openapi": "3.1.0", "paths": paths}), field)


async def of_openapi_without_cookies(field: str) -> None:
    app = FastAPI()

    @app.get("/")
    async def get(n: int = 1) -> int:
        return n

    await judged(OpenApiValidation(app), field)


async def judged(agent: OpenApiValidation, field: str) -> None:
    await agent.on_request_headers(request_headers_event(headers={"cookie": field}))


async def of_modsecurity(field: str) -> None:
    list(request_fields_of(request_headers_event(headers={"cookie": field}).headers))


@pytest.mark.parametrize("read", [of_jwt_auth, of_openapi, of_openapi_without_cookies, of_modsecurity])
async def test_a_cookie_of_backslashes_takes_time_in_proportion(read: Callable[[str], Any]) -> None:
    async def takes(length: int) -> float:
        times = []
        for _ in range(3):
            began = time.thread_time()
            await read(hostile(length))
            times.append(time.thread_time() - began)
        return min(times)

    # Eight times as long takes 64 times as long where it is quadratic, however much begins with it.
    assert await takes(64_000) < 20 * (await takes(8_000) + 0.001)
