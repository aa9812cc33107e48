"""A file that is taken anew: in one step or not at all, and connections keep what they began with."""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentRoute,
    ConfigurationError,
    guarded_by,
    protect,
)
from asgi_agents.guardrails import ToolPolicy
from asgi_agents.manager import registry_of
from asgi_agents.registry import AgentRegistry
from asgi_agents.status.snapshot import take_snapshot

from .marking import MODULE, File, Marker, marked_app, marker, marks, show


class Guarded:
    """An app that a file protects, and a client of it."""

    def __init__(self, file: File, middleware: AgentMiddleware, client: httpx.AsyncClient) -> None:
        self.file = file
        self.middleware = middleware
        self.client = client

    async def seen(self, path: str = "/") -> str:
        """The marks that a request gets."""
        return (await self.client.get(path)).text

    async def take(self, data: Any) -> None:
        self.file.write(data)
        await self.middleware.reload()

    @property
    def registry(self) -> AgentRegistry:
        return registry_of(self.middleware.manager)

    async def closed(self) -> None:
        """Wait until all agents that were replaced or removed are closed."""
        while self.registry._retirements._under_way:  # noqa: ASYNC110 - nothing else tells
            await anyio.sleep(0.1)


@asynccontextmanager
async def guarded(
    directory: Path, data: Any, *, imports: Sequence[str] = (MODULE,), **options: Any
) -> AsyncIterator[Guarded]:
    file = File(directory, data)
    app = marked_app()
    middleware = protect(app, config=file.path, imports=imports, **options)
    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        yield Guarded(file, middleware, client)


async def test_agents_routes_and_their_order_change_with_the_file(tmp_path: Path) -> None:
    first = marks(marker("a", "a1"), marker("b", "b1"))
    second = marks(
        marker("b", "b2"),
        marker("c", "c2"),
        routes=[{"path": "/c", "agents": ["c"]}],
        default_agents=["c", "b"],
    )
    async with guarded(tmp_path, first) as it:
        assert await it.seen("/c") == "a1 b1"
        await it.take(second)
        assert await it.seen("/c") == "c2"
        assert await it.seen("/") == "c2 b2"
        assert it.middleware.manager.agent_ids == ("b", "c")
        await it.take(first)
        assert await it.seen("/c") == "a1 b1"
        await it.closed()


async def test_an_agent_of_which_the_file_says_the_same_stays_as_it_is(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a"), marker("b", "b1"))) as it:
        await it.seen()
        guards = {guard.config.id: guard for guard in it.registry.guards()}
        made = Marker.made
        await it.take(marks(marker("b", "b2"), marker("a", "a"), default_agents=["a"]))
        assert it.registry.guard("a") is guards["a"]
        assert it.registry.guard("b") is not guards["b"]
        # Only what has changed is made anew.
        assert Marker.made == made + 1
        await it.seen()
        assert it.middleware.manager.metrics["a"].calls == 2
        # What was counted of an agent that was replaced is that of its id.
        assert it.middleware.manager.metrics["b"].calls == 1


async def test_a_request_that_is_under_way_ends_with_what_it_began_with(tmp_path: Path) -> None:
    first = marks(marker("a", "a1", delay=5, timeout=9), marker("b", "b1", after=["a"]))
    async with guarded(tmp_path, first) as it, anyio.create_task_group() as tasks:
        seen: list[str] = []

        async def ask() -> None:
            seen.append(await it.seen())

        tasks.start_soon(ask)
        await anyio.sleep(1)
        # It waits for `a`, and is to be shown to `b` only then.
        await it.take(marks(marker("c", "c2")))
        assert await it.seen() == "c2"
        assert seen == []
        await anyio.sleep(5)
        assert seen == ["a1 b1"]
        await it.closed()


def refusing(**fields: Any) -> dict[str, Any]:
    return marks(marker("a", "a2"), marker("b", "b2", refuses=True, **fields))


OUT_OF_REACH = {"id": "b", "transport": "tcp://127.0.0.1:9", "events": ["request_headers"]}
#: What the file becomes, and the error.
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an empty file": ("", ConfigurationError, "the file is empty"),
    "a file that was cut off": ("[[agents]]\nid = ", ConfigurationError, "no TOML"),
    "a mistake": (marks(marker("a", "a2", timeout=-1)), ConfigurationError, "agents[0].timeout: found -1"),
    "a file without agents": ({"debug": True}, ConfigurationError, "neither agents nor guardrails"),
    "a route to no agent": (marks(marker("a", "a2"), default_agents=["b"]), ConfigurationError, "'b' is no agent"),
    "a setting that takes a restart": (
        marks(marker("a", "a2"), stop_grace=3),
        ConfigurationError,
        "stop_grace: has changed, which takes a restart",
    ),
    "an agent that refuses its configuration": (refusing(), AgentError, "agent 'b': not configured"),
    "a guardrail that its agent does not know": (
        marks(marker("a", "a2"), guardrails=[{"agent_id": "a", "on": ["input"]}]),
        ConfigurationError,
        "guardrails[0]: agent 'a' does not receive guardrail_inspect",
    ),
    "an agent out of reach": (marks(marker("a", "a2"), OUT_OF_REACH), AgentError, "agent 'b'"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_file_that_is_refused_changes_nothing_and_the_log_says_why_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    data, kind, message = REFUSED[case]
    async with guarded(tmp_path, marks(marker("a", "a1"), marker("b", "b1"))) as it:
        assert await it.seen() == "a1 b1"
        before, metered = it.registry.guards(), it.registry.metered
        with pytest.raises(kind) as caught:
            await it.take(data)
        assert message in str(caught.value)
        [line] = [record.getMessage() for record in caplog.records if "refused, all stays" in record.getMessage()]
        assert message in line
        assert "\n" not in line
        assert (it.registry.guards(), it.registry.metered) == (before, metered)
        assert await it.seen() == "a1 b1"
        status = take_snapshot(it.registry).source
        assert status is not None
        assert status.refusal is not None
        assert message in status.refusal
        caplog.clear()
        await it.take(marks(marker("a", "a3"), marker("b", "b1")))
        assert await it.seen() == "a3 b1"
        assert [record.getMessage() for record in caplog.records if record.name == "asgi_agents"] == [
            f"{it.file.path}: taken: replaced 'a'"
        ]
        status = take_snapshot(it.registry).source
        assert status is not None
        assert (status.path, status.refused_at, status.refusal) == (str(it.file.path), None, None)


@pytest.mark.parametrize("changed", [{"failure_mode": "open"}, {"timeout": 0.5}])
async def test_an_agent_that_is_down_may_be_given_another_failure_mode(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Else an operator could not have the app go on without it, while it is down."""
    async with guarded(tmp_path, marks(OUT_OF_REACH)) as it:
        assert (await it.client.get("/")).status_code == 503
        await it.take(marks({**OUT_OF_REACH, **changed}))
        assert (await it.client.get("/")).status_code == (200 if "failure_mode" in changed else 503)


async def test_an_agent_that_is_new_and_down_is_treated_by_its_failure_mode(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a1"))) as it:
        await it.take(marks(marker("a", "a1"), {**OUT_OF_REACH, "failure_mode": "open"}))
        assert await it.seen() == "a1"
        with pytest.raises(AgentError, match="agent 'c'"):
            await it.take(marks(marker("a", "a1"), {**OUT_OF_REACH, "id": "c", "require_at_startup": True}))
        assert it.middleware.manager.agent_ids == ("a", "b")


async def test_reloads_are_counted_by_their_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    first = marks(marker("a", "a1"))

    def counts() -> dict[str, int]:
        """As OpenTelemetry, Prometheus and the status page have them, which are the same."""
        data = reader.get_metrics_data()
        assert data is not None
        metrics = [metric for one in data.resource_metrics for scope in one.scope_metrics for metric in scope.metrics]
        [counter] = [metric for metric in metrics if metric.name == "asgi_agents.reloads"]
        points: Any = counter.data.data_points
        found = {point.attributes["asgi_agents.outcome"]: point.value for point in points}
        text = it.middleware.manager.export_prometheus()
        exported = re.findall(r'^asgi_agents_reloads_total\{outcome="(\w+)"\} (\d+)', text, re.MULTILINE)
        source = it.registry.source
        assert source is not None
        assert {outcome: int(float(number)) for outcome, number in exported} == found == dict(source.reloads)
        return found

    async with guarded(tmp_path, first, meter_provider=provider) as it:
        assert counts() == {"taken": 0, "refused": 0, "failed": 0}
        for data in (marks(marker("a", "a2")), first):
            await it.take(data)
        with pytest.raises(ConfigurationError):
            await it.take("")
        with pytest.raises(AgentError):
            await it.take(refusing(require_at_startup=True))
        assert counts() == {"taken": 2, "refused": 2, "failed": 0}
        with monkeypatch.context() as patched:
            patched.setattr("asgi_agents.files.reload.load_with", _raise_memory_error)
            with pytest.raises(MemoryError):
                await it.middleware.reload()
        # What went wrong does not keep others from their turn.
        await it.take(first)
        assert counts() == {"taken": 3, "refused": 2, "failed": 1}
    provider.shutdown()


async def test_the_rows_of_policies_on_the_status_page_are_those_of_the_file_that_holds(tmp_path: Path) -> None:
    def entries(action: str, **others: Any) -> dict[str, Any]:
        words = {"id": "words", "transport": "http://127.0.0.1:9", "events": ["guardrail_inspect"]}
        # Of what has no body.
        guardrail = {"agent_id": "words", "on": ["input"], "action": action, "hold": 80}
        return marks(marker("a", "a"), words, guardrails=[guardrail], default_agents=["a"], **others)

    async def own(request: Request) -> Response:
        return await show(request)

    file = File(tmp_path, entries("block"))
    app = Starlette(routes=[Route("/own", guarded_by("a")(own)), Route("/{rest:path}", show)])
    middleware = protect(app, config=file.path, imports=[MODULE])

    def rows() -> list[tuple[str | None, list[str | None]]]:
        routes = take_snapshot(registry_of(middleware.manager)).routes
        return sorted(((row.path, [one.action for one in row.guardrails]) for row in routes), key=str)

    async with (
        middleware.manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        await client.get("/")
        assert rows() == [("/own", ["block"]), (None, ["block"])]
        for action in ("flag", "block", "flag"):
            file.write(entries(action, routes=[{"path": f"/{action}", "agents": ["a"]}]))
            await middleware.reload()
            expected = [(f"/{action}", [action]), ("/own", [action]), (None, [action])]
            # At once, and when the first connection has looked at the app's routes.
            assert rows() == expected
            await client.get("/own")
            assert rows() == expected
        app.router.routes.insert(0, Route("/late", guarded_by("a")(own)))
        await client.get("/late")
        assert ("/late", ["flag"]) in rows()
        del app.router.routes[:2]
        await client.get("/other")
        assert [path for path, _ in rows()] == ["/flag", None]


def _raise_memory_error(*arguments: object) -> None:
    raise MemoryError


def test_there_is_no_count_of_reloads_where_there_is_no_file() -> None:
    manager = AgentManager([AgentConfig("a", Marker())])
    assert "reloads" not in manager.export_prometheus()


async def test_secrets_are_in_no_line_of_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MARK", "hunter2-and-more")
    async with guarded(tmp_path, marks(marker("a", "a1"))) as it:
        with pytest.raises(AgentError) as caught:
            await it.take(marks(marker("a", "${MARK}", refuses=True)))
        await it.take(marks(marker("a", "${MARK}")))
        assert await it.seen() == "hunter2-and-more"
    assert "no such mark: ${MARK}" in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "hunter2" not in caplog.text


async def test_what_code_gives_stays_with_every_file(tmp_path: Path) -> None:
    class Own(Marker):
        pass

    own = AgentConfig("own", Own(), config={"mark": "own"})
    options: dict[str, Any] = {
        "agents": [own],
        "routes": [AgentRoute("/own", agents=["own"])],
        "default_agents": ["own", "a"],
        "guardrails": [ToolPolicy(deny=["x"])],
    }
    async with guarded(tmp_path, marks(marker("a", "a1")), **options) as it:
        guard = it.registry.guard("own")
        assert (await it.seen("/own"), await it.seen()) == ("own", "own a1")
        await it.take(marks(marker("a", "a2")))
        assert (await it.seen("/own"), await it.seen()) == ("own", "own a2")
        assert it.registry.guard("own") is guard
        # The code's routes name it.
        with pytest.raises(ConfigurationError, match="'a'"):
            await it.take(marks(marker("b", "b3")))
        with pytest.raises(
            ConfigurationError, match="default_agents: given in the code too, expected it in one of them"
        ):
            await it.take(marks(marker("a", "a2"), default_agents=["a"]))
        assert await it.seen() == "own a2"


async def test_an_agent_that_was_added_by_hand_stays(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a1"))) as it:
        await it.middleware.manager.add_agent(AgentConfig("hand", Marker(), config={"mark": "hand"}))
        await it.take(marks(marker("a", "a2"), marker("b", "b2")))
        assert await it.seen() == "a2 b2 hand"
        await it.middleware.manager.remove_agent("b")
        # The file says the same of it as before, and it is there again.
        await it.take(marks(marker("a", "a2"), marker("b", "b2")))
        assert await it.seen() == "a2 b2 hand"


@pytest.mark.parametrize("was_of_the_file", [False, True])
async def test_a_file_takes_no_place_of_an_agent_of_the_code(tmp_path: Path, was_of_the_file: bool) -> None:
    named = [marker("a", "a1"), marker("keys", "file")]
    async with guarded(tmp_path, marks(*named) if was_of_the_file else marks(named[0])) as it:
        manager = it.middleware.manager
        if was_of_the_file:
            await manager.remove_agent("keys")
        await manager.add_agent(AgentConfig("keys", Marker(), config={"mark": "code"}))
        guards = it.registry.guards()
        # Both as it was and changed, and whatever else the file has.
        for data in (marks(*named), marks(marker("keys", "k2"), marker("a", "a2")), marks(marker("keys", "k3"))):
            with pytest.raises(
                ConfigurationError, match="code has added an agent with the id 'keys', expected another"
            ):
                await it.take(data)
            assert it.registry.guards() == guards
            assert await it.seen() == "a1 code"
        # Nor does it take that agent away.
        await it.take(marks(marker("a", "a4")))
        assert await it.seen() == "a4 code"
        # What code has removed, the file may name.
        await manager.remove_agent("keys")
        await it.take(marks(*named))
        assert await it.seen() == "a1 file"


async def test_the_first_guardrail_may_come_with_a_later_file(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a1"))) as it:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "rm", "arguments": {}}}
        assert (await it.client.post("/", json=call)).status_code == 405
        await it.take(marks(marker("a", "a1"), guardrails=[{"deny": ["rm"]}]))
        assert "denies this call" in (await it.client.post("/", json=call)).text
        await it.take(marks(marker("a", "a1")))
        assert (await it.client.post("/", json=call)).status_code == 405


async def test_the_status_page_lists_the_routes_that_hold(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a"), routes=[{"path": "/one", "agents": ["a"]}])) as it:
        assert [route.path for route in take_snapshot(it.registry).routes] == ["/one", None]
        await it.take(marks(marker("a", "a"), routes=[{"path": "/two", "agents": ["a"]}]))
        assert [route.path for route in take_snapshot(it.registry).routes] == ["/two", None]


async def test_of_several_reloads_at_a_time_the_last_file_stays(tmp_path: Path) -> None:
    async with guarded(tmp_path, marks(marker("a", "a0"))) as it:
        async with anyio.create_task_group() as tasks:
            for number in range(1, 9):
                it.file.write(marks(marker("a", f"a{number}")))
                tasks.start_soon(it.middleware.reload)
                await anyio.lowlevel.checkpoint()
        assert await it.seen() == "a8"
        await it.closed()


async def test_a_reload_that_is_cancelled_changes_nothing(tmp_path: Path) -> None:
    class Slow(Marker):
        async def on_configure(self, event: Any) -> Any:
            await anyio.sleep(2 if event.config.get("slow") else 0)
            return await super().on_configure(event)

    globals()["Slow"] = Slow
    try:
        entry = {"id": "a", "transport": f"{__name__}:Slow", "config": {"mark": "a1"}}
        file = File(tmp_path, marks(entry))
        app = marked_app()
        middleware = protect(app, config=file.path, imports=[__name__])
        async with (
            middleware.manager,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
        ):
            file.write(marks({**entry, "config": {"mark": "a2", "slow": True}}))
            with anyio.move_on_after(1) as scope:
                await middleware.reload()
            assert scope.cancelled_caught
            assert (await client.get("/")).text == "a1"
            await middleware.reload()
            assert (await client.get("/")).text == "a2"
    finally:
        del globals()["Slow"]


async def test_without_a_file_there_is_nothing_to_reload() -> None:
    middleware = protect(marked_app(), agents=[AgentConfig("a", Marker(), config={"mark": "a"})])
    with pytest.raises(ConfigurationError, match=r"there is no file, expected protect\(app, config='...'\)"):
        await middleware.reload()


class Waf(Agent):
    async def on_request_headers(self, event: object) -> None: ...


PROTECT: dict[str, tuple[dict[str, Any], str]] = {
    "imports without a file": ({"config": None, "imports": ["x"]}, "imports and reload are about a file"),
    "reload without a file": ({"config": None, "reload": "on-change"}, "imports and reload are about a file"),
    "no path": ({"config": 5}, "config=5, expected the path of a file"),
    "a module without a list": ({"imports": MODULE}, "imports='tests.files.marking', expected a list"),
    "another way to reload": ({"reload": "always"}, "reload='always', expected 'on-change', 'on-sighup' or None"),
    "agents that are none": ({"agents": "waf"}, "agents='waf', expected a list of AgentConfig"),
    "a setting in both places": ({"stop_grace": 3}, "stop_grace: given in the code too, expected it in one of them"),
    "the same agent in both places": ({"agents": [AgentConfig("a", Waf())]}, "two agents have the id 'a'"),
}


@pytest.mark.parametrize("case", PROTECT)
def test_what_can_not_be_combined_with_a_file_is_refused_and_the_app_is_as_it_was(tmp_path: Path, case: str) -> None:
    options, message = PROTECT[case]
    file = File(tmp_path, marks(marker("a", "a"), stop_grace=2))
    app = marked_app()
    with pytest.raises(ConfigurationError) as caught:
        protect(app, **{"config": file.path, "imports": [MODULE], **options})
    assert message in str(caught.value)
    protect(app, config=file.path, imports=[MODULE])


def test_a_manager_beside_a_file_is_refused(tmp_path: Path) -> None:
    manager = protect(marked_app(), agents=[AgentConfig("a", Waf())]).manager
    with pytest.raises(ConfigurationError, match="both config and manager are given, expected one of them"):
        protect(marked_app(), manager=manager, config=File(tmp_path, marks(marker("a", "a"))).path)


def generation(number: int) -> tuple[dict[str, Any], str]:
    """A file, and what a request gets by it: other agents on other routes each time, all with the same number."""
    if number % 2:
        return marks(marker("c", number), routes=[{"path": "/{rest:path}", "agents": ["c"]}]), f"{number}"
    data = marks(marker("a", number), marker("b", number, delay=number % 3, timeout=9), default_agents=["a", "b"])
    return data, f"{number} {number}"


async def test_no_request_is_lost_or_unjudged_or_judged_by_half_of_a_file(tmp_path: Path) -> None:
    """Three clients for a minute, and twenty files; in virtual time (with a real server: test_reload_serving.py)."""
    data, _ = generation(0)
    seen: list[str] = []
    async with guarded(tmp_path, data) as it:

        async def ask_for_a_minute(number: int) -> None:
            await anyio.sleep(number / 3)
            while anyio.current_time() < end:
                response = await it.client.get(f"/{number}")
                assert response.status_code == 200
                seen.append(response.text)
                await anyio.sleep(1.7)

        end = anyio.current_time() + 60
        async with anyio.create_task_group() as tasks:
            for client in range(3):
                tasks.start_soon(ask_for_a_minute, client)
            for number in range(1, 21):
                await anyio.sleep(2.9)
                await it.take(generation(number)[0])
        await it.closed()
    expected = [generation(number)[1] for number in range(21)]
    assert set(seen) == set(expected)
    assert len(seen) > 60


async def test_routes_that_were_replaced_find_what_holds_now(tmp_path: Path) -> None:
    """As in another thread, which had begun to look a path up before they were."""
    async with guarded(tmp_path, marks(marker("a", "a"), routes=[{"path": "/{rest:path}", "agents": ["a"]}])) as it:
        scope: dict[str, Any] = {"type": "http", "path": "/x", "method": "GET", "root_path": "", "headers": []}
        old = it.middleware._finder
        await it.take(
            marks(
                marker("b", "b"),
                marker("c", "c"),
                routes=[{"path": "/{rest:path}", "methods": ["GET"], "agents": ["b"]}],
                default_agents=["c"],
            )
        )
        for method, agent_id in (("GET", "b"), ("POST", "c")):
            resolved_route = old.find("/x", {**scope, "method": method})
            assert [agent.guard.config.id for agent in resolved_route.agents] == [agent_id]
        await it.take(marks(marker("d", "d")))
        assert [agent.guard.config.id for agent in old.find("/x", scope).agents] == ["d"]


# Policies on endpoints


async def test_an_endpoint_keeps_its_own_policy_with_every_file(tmp_path: Path) -> None:
    @guarded_by("b")
    async def own(request: Request) -> Response:
        return await show(request)

    app = Starlette(routes=[Route("/own", own), Route("/other", show)])
    file = File(tmp_path, marks(marker("a", "a1"), marker("b", "b1")))
    middleware = protect(app, config=file.path, imports=[MODULE])
    transport = httpx.ASGITransport(app)
    async with middleware.manager, httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        assert [(await client.get(path)).text for path in ("/own", "/other")] == ["b1", "a1 b1"]
        file.write(marks(marker("b", "b2"), marker("c", "c2"), default_agents=["c"]))
        await middleware.reload()
        assert [(await client.get(path)).text for path in ("/own", "/other")] == ["b2", "c2"]
        # A file without an agent that an endpoint wants is refused: the endpoint could only answer 503.
        file.write(marks(marker("c", "c3"), default_agents=["c"]))
        with pytest.raises(ConfigurationError, match=r"guarded_by\('b'\) on own at '/own': .*'b'"):
            await middleware.reload()
        assert [(await client.get(path)).text for path in ("/own", "/other")] == ["b2", "c2"]
