"""The OpenAPI document says which agents guard each operation."""

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.testclient import TestClient

from asgi_agents import AgentMiddleware, AgentRoute, ConfigurationError, guard_router, guarded_by, unguarded
from asgi_agents.fastapi import describe_agents
from asgi_agents.routing.survey import survey_of

from .asking import World

STATUSES = {"401", "403", "429", "503"}


def shop() -> FastAPI:
    app, admin = FastAPI(), guard_router(APIRouter(prefix="/admin"), "auth")

    @app.get("/items/{item_id:int}", responses={403: {"description": "mine"}})
    @guarded_by("waf", ("pii", "open"))
    def item(item_id: int) -> int:
        return item_id

    @app.post("/items/{item_id:int}")
    def change(item_id: int) -> int:
        return item_id

    @app.get("/healthz")
    @unguarded
    def healthz() -> str:
        return "ok"

    @admin.get("/users")
    def users() -> str:
        return ""

    app.include_router(admin, prefix="/v1")
    return app


def agents_in(schema: dict[str, Any]) -> dict[str, list[str] | None]:
    return {
        f"{method.upper()} {path}": operation.get("x-agents")
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }


EXPECTED = {
    "GET /items/{item_id}": ["waf", "pii"],
    "POST /items/{item_id}": ["rest"],
    "GET /healthz": None,
    "GET /v1/admin/users": ["auth"],
}


def test_operations_have_their_agents_and_what_these_answer() -> None:
    world, app = World(), shop()
    describe_agents(app, world.protect(app))
    schema = TestClient(app).get("/openapi.json").json()
    assert agents_in(schema) == EXPECTED
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert STATUSES.isdisjoint(operation["responses"]) == ("x-agents" not in operation)
            if "x-agents" in operation:
                assert set(operation["responses"]) >= STATUSES
    assert schema["paths"]["/items/{item_id}"]["get"]["responses"]["403"] == {"description": "mine"}


def test_nothing_is_written_without_being_asked_for() -> None:
    app = shop()
    World().protect(app)
    assert set(agents_in(app.openapi()).values()) == {None}


def test_what_users_have_set_is_called_and_kept() -> None:
    world, app = World(), shop()
    made: list[dict[str, Any]] = []

    def own() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = get_openapi(title="Own", version="7", routes=app.routes)
            made.append(app.openapi_schema)
        return app.openapi_schema

    app.openapi = own  # type: ignore[method-assign]
    describe_agents(app, world.protect(app))
    for _ in range(2):
        schema = app.openapi()
        assert (schema["info"]["title"], agents_in(schema)) == ("Own", EXPECTED)
    assert len(made) == 1
    assert set(agents_in(made[0]).values()) == {None}


def test_routes_that_come_later_are_in_it() -> None:
    world, app = World(), shop()
    describe_agents(app, world.protect(app))
    app.openapi()

    @app.get("/later")
    @guarded_by("pii")
    def later() -> str:
        return ""

    app.openapi_schema = None
    assert agents_in(app.openapi()) == {**EXPECTED, "GET /later": ["pii"]}


def test_an_app_that_is_mounted_has_a_document_of_its_own() -> None:
    world, app, sub = World(), FastAPI(), shop()
    app.mount("/sub", guard_router(sub, "auth"))
    guard = world.protect(app)
    describe_agents(sub, guard)
    describe_agents(app, guard)
    client = TestClient(app)
    inner = agents_in(client.get("/sub/openapi.json").json())
    assert inner == {**EXPECTED, "POST /items/{item_id}": ["auth"]}
    assert agents_in(client.get("/openapi.json").json()) == {}


@pytest.mark.parametrize(
    ("options", "agents"),
    [
        ({"routes": None, "default_agents": None}, ["waf", "pii"]),
        ({"routes": [AgentRoute("/items/new", ["pii"])], "default_agents": ["waf"]}, ["waf", "pii"]),
        ({"routes": [AgentRoute("/items/{item_id}", [])], "default_agents": ["waf"]}, None),
    ],
)
def test_agents_of_routes_are_in_it(options: dict[str, Any], agents: list[str] | None) -> None:
    world, app = World(), FastAPI()

    @app.get("/items/{item_id}")
    def item(item_id: str) -> str:
        return item_id

    describe_agents(app, world.protect(app, ["waf", "pii"], **options))
    assert agents_in(app.openapi()) == {"GET /items/{item_id}": agents}


async def test_agents_are_looked_up_again_where_any_was_removed_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, app = World(), shop()
    guard = world.protect(app)
    describe_agents(app, guard)
    looked_up: list[object] = []

    def noted(*arguments: Any) -> Any:
        looked_up.append(arguments)
        return survey_of(*arguments)

    monkeypatch.setattr("asgi_agents.fastapi.survey_of", noted)
    for _ in range(3):
        assert agents_in(app.openapi()) == EXPECTED
    assert len(looked_up) == 1
    await guard.manager.remove_agent("pii")
    for _ in range(2):
        assert agents_in(app.openapi()) == {**EXPECTED, "GET /items/{item_id}": ["waf"]}
    assert len(looked_up) == 2


def test_what_cant_work_is_refused() -> None:
    app: Any = shop()
    guard: AgentMiddleware = World().guard(app)
    with pytest.raises(ConfigurationError, match="expected a FastAPI app"):
        describe_agents(guard, guard)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"expected what protect\(app, ...\) returns"):
        describe_agents(app, app)
