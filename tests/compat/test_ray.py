"""Agents on Ray Serve: a cluster of three nodes on this machine, its handles, its proxy, and what happens to both."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from starlette.testclient import TestClient

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    BodyMode,
    ConfigurationError,
    EventType,
    FailureMode,
    GuardrailInspectEvent,
    HttpTransport,
)
from asgi_agents.guardrails import Guardrail

from ..docs.markdown import blocks_of
from ..docs.pages import DOCS
from .ray_agents import Digits, Fixed, Later, Paths, Remembers, Slow

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from ray.serve.schema import ServeDeploySchema

from asgi_agents.ray import Batching, agent_deployment
from asgi_agents.transports.ray_serve import RayTransport

from .ray_nodes import CLIENTS, PATIENCE, ROOT, Nodes, guarded, running

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Ray's own
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running(tmp_path_factory.mktemp("ray")) as nodes:
        yield nodes


def config(name: str, **settings: Any) -> AgentConfig:
    return AgentConfig("guard", f"ray://guards/{name}", **{"timeout": PATIENCE, **settings})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_answers_as_it_does_in_the_process(nodes: Nodes, backend: Any) -> None:
    nodes.run(agent_deployment(Paths, num_replicas=2))
    asked = [("GET", "/"), ("GET", "/refused"), ("GET", "/mine"), ("GET", "/fails"), ("POST", "/")]
    for given in (None, {"paths": ["/mine"]}):
        seen = []
        for transport in (Paths(), "ray://guards/Paths"):
            app = guarded(AgentConfig("guard", transport, config=given, timeout=PATIENCE))
            with TestClient(app, backend=backend) as client:
                seen.append([(reply.status_code, reply.text) for reply in (client.request(*each) for each in asked)])
        # Replicas keep a configuration until they get another one: without one, nothing is said of it.
        assert given is None or seen[0] == seen[1]
        assert seen[1][0] == (200, "served")
        assert seen[1][3][0] == 503


def test_a_refused_configuration_is_a_failure_that_says_why(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    nodes.run(agent_deployment(Paths))
    with TestClient(guarded(config("Paths", config={"paths": ["no path"]}))) as client:
        assert client.get("/").status_code == 503
    assert "it refused its configuration: these are no paths" in caplog.text


def test_every_replica_is_configured_by_the_deployment(nodes: Nodes) -> None:
    nodes.run(agent_deployment(Paths, num_replicas=2, config={"paths": ["/mine"]}), route="/paths")
    transport = HttpTransport(f"http://127.0.0.1:{nodes.http_port}/paths")
    app = guarded(AgentConfig("guard", transport, events=[EventType.REQUEST_HEADERS], timeout=PATIENCE))
    with TestClient(app) as client:
        assert {client.get("/mine").status_code for _ in range(20)} == {403}
        assert {client.get("/refused").status_code for _ in range(20)} == {200}


def test_events_of_a_request_go_to_one_replica(nodes: Nodes) -> None:
    nodes.run(agent_deployment(Remembers, num_replicas=4))
    app = guarded(config("Remembers", request_body_mode=BodyMode.STREAM))
    with TestClient(app) as client:
        for _ in range(10):
            reply = client.post("/", content=iter([b"one", b"two", b"three"]))
            assert (reply.status_code, reply.text) == (200, "onetwothree")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_past_its_deadline_is_cancelled_at_the_replica(nodes: Nodes, backend: Any) -> None:
    nodes.run(agent_deployment(Slow))
    nodes.told.write_text("")
    with TestClient(guarded(config("Slow", timeout=3.0)), backend=backend) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"x-seconds": "600"}).status_code == 504
        give_up = time.monotonic() + PATIENCE
        while not nodes.told.read_text() and time.monotonic() < give_up:
            time.sleep(0.05)
    assert nodes.told.read_text() == "x"


def test_an_update_loses_no_call_and_is_noticed(nodes: Nodes) -> None:
    nodes.run(agent_deployment(Paths, name="Updated", num_replicas=2))
    statuses: Counter[int] = Counter()

    async def go_on(client: httpx.AsyncClient, until: anyio.Event) -> None:
        while not until.is_set():
            statuses[(await client.get("/")).status_code] += 1

    async def run() -> int:
        app = guarded(config("Updated"))
        updated = anyio.Event()
        async with (
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(10):
                tasks.start_soon(go_on, client, updated)
            await anyio.sleep(0.2)
            await anyio.to_thread.run_sync(nodes.run, agent_deployment(Later, name="Updated", num_replicas=2))
            updated.set()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            # The first tells that the agent is another one.
            await client.post("/", content=b"text")
            status = (await client.post("/", content=b"text")).status_code
        await app.manager.shutdown()
        return status

    assert anyio.run(run) == 403
    assert set(statuses) == {200}


def test_batches(nodes: Nodes) -> None:
    """What comes while a batch is judged is the next one, whatever the machine does; verdicts keep to their texts."""
    batches = []
    for batching in (None, Batching(max_size=64, wait=0.002)):
        nodes.run(agent_deployment(Fixed, batching=batching, max_ongoing_requests=200))
        nodes.told.write_text("")
        asked = anyio.run(_ask_at_once)
        batches.append(len(nodes.told.read_text()))
    assert batches[0] == asked
    assert batches[1] <= asked / 4


async def _ask_at_once() -> int:
    client = RayTransport("ray://guards/Fixed").bind("guard", events=None, config=None, max_concurrent_calls=200)
    texts = ["attack" if number % 3 else "harmless" for number in range(300)]
    found: dict[int, bool] = {}

    async def inspect(number: int) -> None:
        event = GuardrailInspectEvent(
            correlation_id=str(number), inspection_type="prompt_injection", content=texts[number]
        )
        verdict = await client.call(event)
        found[number] = bool(getattr(verdict, "detected", False))

    async with anyio.create_task_group() as tasks:
        for number in range(len(texts)):
            tasks.start_soon(inspect, number)
    await client.aclose()
    assert found == {number: text == "attack" for number, text in enumerate(texts)}
    return len(texts)


def test_a_text_guardrail_in_batches(nodes: Nodes) -> None:
    nodes.run(agent_deployment(Digits, batching=Batching()))
    app = guarded(config("Digits"), guardrails=[Guardrail("guard", on={"output"})])
    with TestClient(app) as client:
        reply = client.post("/", content=b"call 555 0199", headers={"content-type": "text/plain"})
    assert reply.text == "call ### ####"


def test_replicas_come_and_go_under_load(nodes: Nodes) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2, "upscale_delay_s": 0.5}
    nodes.run(agent_deployment(Slow, name="Scaled", autoscaling_config={**scaling, "downscale_delay_s": 2.0}))

    def replicas() -> int:
        return sum(serve.status().applications["guards"].deployments["Scaled"].replica_states.values())

    async def run() -> tuple[Counter[int], int]:
        statuses: Counter[int] = Counter()
        app = guarded(config("Scaled", max_concurrent_calls=CLIENTS))
        most = 1
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://app", headers={"x-seconds": "0.05"}
        ) as client:
            give_up = time.monotonic() + PATIENCE

            async def go_on() -> None:
                while most < 4 and time.monotonic() < give_up:
                    statuses[(await client.get("/")).status_code] += 1

            async with anyio.create_task_group() as tasks:
                for _ in range(CLIENTS):
                    tasks.start_soon(go_on)
                while most < 4 and time.monotonic() < give_up:
                    most = max(most, await anyio.to_thread.run_sync(replicas))
                    await anyio.sleep(0.2)
        await app.manager.shutdown()
        return statuses, most

    statuses, most = anyio.run(run)
    assert most == 4
    assert set(statuses) == {200}


def test_a_node_is_killed_under_load(nodes: Nodes) -> None:
    """Of a fail-closed agent, requests get 503 or 504 and nothing else; of a fail-open one, all are served."""
    # One replica on each of two nodes.
    nodes.run(
        agent_deployment(
            Paths,
            name="Spread",
            num_replicas=2,
            ray_actor_options={"resources": {"agents": 5}},
            health_check_period_s=1.0,
            health_check_timeout_s=2.0,
        )
    )
    outcomes: dict[FailureMode, list[tuple[float, int]]] = {FailureMode.CLOSED: [], FailureMode.OPEN: []}

    async def go_on(client: httpx.AsyncClient, mode: FailureMode, until: anyio.Event) -> None:
        while not until.is_set():
            status = (await client.get("/")).status_code
            outcomes[mode].append((time.monotonic(), status))

    async def run() -> float:
        until = anyio.Event()
        settings = {"timeout": 2.0, "max_concurrent_calls": CLIENTS}
        apps = {mode: guarded(config("Spread", failure_mode=mode, **settings)) for mode in outcomes}
        async with anyio.create_task_group() as tasks:
            for mode, app in apps.items():
                client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
                for _ in range(CLIENTS // 2):
                    tasks.start_soon(go_on, client, mode, until)
            await anyio.sleep(1.0)
            killed = time.monotonic()
            await anyio.to_thread.run_sync(partial(nodes.cluster.remove_node, nodes.others.pop(), allow_graceful=False))
            await anyio.sleep(12.0)
            until.set()
        for app in apps.values():
            await app.manager.shutdown()
        return killed

    killed = anyio.run(run)
    nodes.others.append(nodes.cluster.add_node(num_cpus=8, resources={"agents": 8}))
    assert {status for _, status in outcomes[FailureMode.OPEN]} == {200}
    closed = outcomes[FailureMode.CLOSED]
    assert {status for _, status in closed} <= {200, 503, 504}
    assert {status for moment, status in closed if moment < killed} == {200}
    assert {status for moment, status in closed if moment > killed + 10.0} == {200}


def test_what_is_not_there_is_a_failure_that_says_so(nodes: Nodes) -> None:
    async def connect() -> None:
        client = RayTransport("ray://guards/nobody").bind("guard", events=None, config=None, max_concurrent_calls=1)
        with pytest.raises(AgentConnectionError, match="no such application and deployment"):
            await client.connect()

    anyio.run(connect)


def test_a_deployment_of_something_else(nodes: Nodes) -> None:
    class Other:
        async def ask(self, data: bytes) -> str:
            if len(data) > 100:
                raise ValueError("what it was working on")
            return "hello"

    nodes.run(serve.deployment(Other).bind())

    async def connect(given: Any) -> str:
        client = RayTransport("ray://guards/Other").bind("guard", events=None, config=None, max_concurrent_calls=1)
        event = GuardrailInspectEvent(correlation_id="c", inspection_type="pii_detection", content="x" * 1000)
        with pytest.raises(AgentError) as caught:
            await (client.connect() if given is None else client._send(given(event), "c"))
        return str(caught.value)

    from asgi_agents.protocol import Encoding, encode_event
    from asgi_agents.transports.ray_client import RayQuestion

    assert anyio.run(connect, None) == "answered with str, expected bytes of an agent deployment"
    question = lambda event: RayQuestion(encode_event(event, Encoding.MSGPACK))  # noqa: E731
    assert anyio.run(connect, question) == "the replica raised ValueError, expected an agent deployment"


def test_the_command_line(nodes: Nodes) -> None:
    command = [sys.executable, "-m", "asgi_agents.ray", "tests.compat.ray_agents:Paths", "--app", "guards"]
    given = ["--name", "waf", "--config", json.dumps({"paths": ["/mine"]}), "--address", nodes.cluster.address]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "deployed: ray://guards/waf\n"), done.stderr
    with TestClient(guarded(config("waf"))) as client:
        assert [client.get(path).status_code for path in ("/mine", "/refused")] == [403, 200]


def test_the_page_of_the_guide(nodes: Nodes, tmp_path: Path) -> None:
    page = DOCS / "guide" / "ray.md"
    for block in blocks_of(page.read_text()):
        if "run by" in block.marks:
            (tmp_path / str(block.title)).write_text(block.code)
    (tmp_path / "asked.py").write_text(
        "from main import app\n"
        "from starlette.testclient import TestClient\n"
        "with TestClient(app) as client: print(client.post('/chat?prompt=tea').text)\n"
    )
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ServeDeploySchema.model_validate(yaml.safe_load((tmp_path / "serve.yaml").read_text()))
    shell = [
        shlex.split(next(block.code for block in blocks_of(page.read_text()) if each in block.code))
        for each in ("--replicas", "--non-blocking")
    ]
    for command in (shell[0], ["python", "deploy.py"], ["python", "asked.py"], shell[1], ["python", "asked.py"]):
        # Of the same virtualenv.
        command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"answer": "I call [number] about tea"}


MISTAKES = [
    (["nobody:Nothing"], "error: can't import 'nobody': "),
    (["tests.compat.ray_agents:Paths", "--replicas", "4:1"], "error: --replicas: '4:1', expected "),
    (["tests.compat.ray_agents:Paths", "--replicas", "some"], "error: --replicas: 'some', expected "),
    (["tests.compat.ray_agents:Paths", "--config", "{"], "error: --config: not JSON: "),
    (
        ["tests.compat.ray_agents:Paths", "--batch", "8"],
        "error: agent_deployment: batching of Paths, expected it to have ",
    ),
    (["tests.compat.ray_agents:Paths", "--grpc", "9000"], "error: --grpc needs --route: "),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_mistakes_on_the_command_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asgi_agents.ray.__main__ import main

    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Paths(), "expected what makes one: Paths"),
        ("waf", "expected a class"),
    ],
)
def test_what_is_no_agent(given: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        agent_deployment(given)


def test_events_are_those_that_the_agent_names(nodes: Nodes) -> None:
    nodes.run(agent_deployment(Paths))

    async def hears() -> frozenset[EventType]:
        client = RayTransport("ray://guards/Paths").bind("guard", events=None, config=None, max_concurrent_calls=1)
        await client.connect()
        return client.hears

    assert anyio.run(hears) == {EventType.CONFIGURE, EventType.REQUEST_HEADERS}
