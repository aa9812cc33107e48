"""Bodies of FastAPI handlers whose fields are judged by guardrails."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Final

import pytest
from fastapi import Body, Depends, FastAPI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    ConfigurationError,
    FailureMode,
    InspectedText,
    UnknownGuardrailError,
    fastapi_error,
    protect,
)
from asgi_agents.fastapi import agent_context, inspected
from asgi_agents.guardrails import Guardrail
from tests.guardrails.wired.exchanging import ENTITY, Detecting, Finder, SlowFinder, blocking, failing


class Review(BaseModel):
    title: str = Field(max_length=60)
    comment: str | None = None
    tags: list[str] = []
    stars: int = 5


@dataclass(frozen=True)
class Note:
    text: str
    stars: int = 5


GIVEN: Final = {"title": f"by {ENTITY}", "comment": f"I am {ENTITY}", "tags": [ENTITY, "good"], "stars": 3}


def an_app() -> FastAPI:
    app = FastAPI()

    @app.post("/review")
    async def review(body: Annotated[Review, Depends(inspected(Review, comment="pii"))]) -> Any:
        return body

    @app.post("/several")
    def several(body: Annotated[Review, Depends(inspected(Review, comment="pii", title="pii", tags="pii"))]) -> Any:
        return body

    @app.post("/note")
    async def note(body: Annotated[Note, Depends(inspected(Note, text="pii"))]) -> Any:
        return body

    @app.post("/embedded")
    async def embedded(
        body: Annotated[Review, Depends(inspected(Review, Body(embed=True, alias="review"), comment="pii"))],
    ) -> Any:
        return body

    @app.post("/number")
    async def number(body: Annotated[Review, Depends(inspected(Review, stars="pii"))]) -> Any:
        return body

    @app.post("/unknown")
    async def unknown(body: Annotated[Review, Depends(inspected(Review, comment="nothing"))]) -> Any:
        return body

    return app


def client_of(backend: str, agent: Agent | None = None, **options: Any) -> TestClient:
    app = an_app()
    given = {name: options.pop(name) for name in ("failure_mode", "timeout") if name in options}
    protect(
        app,
        agents=[AgentConfig("pii", agent or Finder(), **given)],
        guardrails=[Guardrail("pii", on={"output"}, when=lambda call: False)],
        **options,
    )
    return TestClient(app, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("agent", [Finder(), SlowFinder(seconds=lambda: 0), Detecting()])
def test_the_handler_gets_the_model_with_the_field_redacted(anyio_backend_name: str, agent: Agent) -> None:
    response = client_of(anyio_backend_name, agent).post("/review", json=GIVEN)
    assert response.status_code == 200
    assert response.json() == {**GIVEN, "comment": "I am [0]"}


def test_several_fields_are_judged_and_so_are_lists_of_texts(anyio_backend_name: str) -> None:
    response = client_of(anyio_backend_name).post("/several", json=GIVEN)
    assert response.json() == {"title": "by [0]", "comment": "I am [0]", "tags": ["[0]", "good"], "stars": 3}


def test_a_dataclass_is_a_model_as_well(anyio_backend_name: str) -> None:
    response = client_of(anyio_backend_name).post("/note", json={"text": ENTITY, "stars": 1})
    assert response.json() == {"text": "[0]", "stars": 1}


def test_the_model_is_taken_from_where_the_source_says(anyio_backend_name: str) -> None:
    response = client_of(anyio_backend_name).post("/embedded", json={"review": GIVEN})
    assert response.json() == {**GIVEN, "comment": "I am [0]"}


def test_a_field_that_is_not_given_is_not_judged(anyio_backend_name: str) -> None:
    finder = Finder(failing)
    response = client_of(anyio_backend_name, finder).post("/review", json={"title": "a"})
    assert response.json() == {"title": "a", "comment": None, "tags": [], "stars": 5}
    assert finder.windows == []


def test_a_body_that_is_not_valid_is_not_judged(anyio_backend_name: str) -> None:
    finder = Finder()
    response = client_of(anyio_backend_name, finder).post("/review", json={**GIVEN, "stars": "many"})
    assert response.status_code == 422
    assert finder.windows == []


@pytest.mark.parametrize("options", [{}, {"render_error": fastapi_error}])
def test_a_block_answers_400_in_the_shape_of_fastapi(anyio_backend_name: str, options: dict[str, Any]) -> None:
    response = client_of(anyio_backend_name, Finder(blocking("I am")), **options).post("/review", json=GIVEN)
    assert response.status_code == 400
    assert response.json() == {"detail": "the policy says no"}


@pytest.mark.parametrize("options", [{}, {"render_error": fastapi_error}])
def test_an_agent_that_fails_closed_answers_503(anyio_backend_name: str, options: dict[str, Any]) -> None:
    response = client_of(anyio_backend_name, Finder(failing), **options).post("/review", json=GIVEN)
    assert response.status_code == 503
    assert list(response.json()) == ["detail"]
    assert ENTITY not in response.text


def test_an_agent_that_is_late_answers_504(anyio_backend_name: str) -> None:
    agent = SlowFinder(seconds=lambda: 3600)
    assert client_of(anyio_backend_name, agent, timeout=0.01).post("/review", json=GIVEN).status_code == 504


def test_an_agent_that_fails_open_lets_the_field_be(anyio_backend_name: str) -> None:
    client = client_of(anyio_backend_name, Finder(failing), failure_mode=FailureMode.OPEN)
    assert client.post("/review", json=GIVEN).json() == GIVEN


def test_a_guardrail_that_there_is_not_is_an_error_and_no_answer(anyio_backend_name: str) -> None:
    with pytest.raises(UnknownGuardrailError, match="there are: pii"):
        client_of(anyio_backend_name).post("/unknown", json=GIVEN)


def test_a_field_that_is_no_text_is_an_error_and_no_answer(anyio_backend_name: str) -> None:
    with pytest.raises(TypeError, match="inspected: stars is of type int, expected a str"):
        client_of(anyio_backend_name).post("/number", json=GIVEN)


def test_the_documented_api_is_that_of_the_model() -> None:
    plain = FastAPI()

    @plain.post("/review")
    async def review(body: Review) -> Any:
        return body

    def schema(app: FastAPI) -> Any:
        operation = app.openapi()["paths"]["/review"]["post"]
        return operation["requestBody"], operation.get("parameters")

    assert schema(an_app()) == schema(plain)
    assert "agents" not in json.dumps(an_app().openapi())


def test_a_test_can_put_another_context_in_its_place() -> None:
    app = an_app()

    async def inspect(text: str, *, guardrail: str) -> InspectedText:
        return InspectedText(text=f"{guardrail}: {len(text)}")

    app.dependency_overrides[agent_context] = lambda: SimpleNamespace(inspect=inspect)
    assert TestClient(app).post("/review", json={"title": "a", "comment": "four"}).json()["comment"] == "pii: 4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inspected(Review), r"inspected\(Review\): no fields.*title="),
        (lambda: inspected(Review, text="pii"), r"inspected\(Review\): text is none.*title, comment, tags, stars"),
        (lambda: inspected(Note, comment="pii"), r"inspected\(Note\): comment is none.*text, stars"),
        (lambda: inspected(Review, comment=None), r"inspected\(Review\): comment=None"),  # type: ignore[arg-type]
        (lambda: inspected(dict, comment="pii"), r"inspected\(dict\): expected a Pydantic model or a dataclass"),
        (lambda: inspected(Note("a"), text="pii"), r"expected a Pydantic model"),  # type: ignore[arg-type]
        (lambda: inspected("Review", comment="pii"), r"inspected\(Review\): expected"),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_judged_is_refused_when_it_is_declared(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
