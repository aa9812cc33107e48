"""The commands in the files are ours, and what stands around them is what they do."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from asgi_agents.serve.__main__ import _GRACE
from asgi_agents.serve.activation import is_activated
from asgi_agents.serve.options import check, make_parser
from asgi_agents.transports.wire import parse_address

from .files import COMPOSE, DEPLOY, DOCKER, KUBERNETES, Command, commands, documents, pods, unit

ALL: Final = list(commands())
AGENTS: Final = [each for each in ALL if each.serve is not None]
APPS: Final = [each for each in ALL if each.uvicorn is not None]
#: Where the apps look for the agent, unless they are told otherwise.
_DEFAULT: Final = re.search(r'environ.get\("WAF", "([^"]+)"\)', (DOCKER / "main.py").read_text())


def options(agent: Command) -> Any:
    assert agent.serve is not None
    return make_parser().parse_args(agent.serve)


def uvicorn_options(app: Command) -> Mapping[str, Any]:
    from uvicorn.main import main

    assert app.uvicorn is not None
    return main.make_context("uvicorn", list(app.uvicorn)).params


def agent_address(app: Command) -> str:
    assert _DEFAULT is not None
    return app.environ.get("WAF", _DEFAULT[1])


def where(command: Command) -> str:
    return command.where


def test_every_command_is_an_agent_or_an_app() -> None:
    assert len(AGENTS) + len(APPS) == len(ALL) - 1
    [other] = [each.where for each in ALL if each.serve is None and each.uvicorn is None]
    assert other == "node.yaml: DaemonSet waf: directory"
    assert {each.where.partition(":")[0] for each in AGENTS} == {
        *(path.name for path in (*COMPOSE, *KUBERNETES)),
        "waf.service",
    }


@pytest.mark.parametrize("agent", AGENTS, ids=where)
def test_an_agent_is_served_by_options_that_there_are(agent: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # What only gRPC's library may read of it.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if options(agent).ext_proc:
        pytest.importorskip("grpc", reason="grpcio is not installed: pip install '.[grpc]'")
    check(options(agent))
    module, _, name = options(agent).agent.partition(":")
    assert f"class {name}(Agent):" in (DOCKER / f"{module}.py").read_text()


@pytest.mark.parametrize("agent", AGENTS, ids=where)
def test_an_agent_has_the_time_to_drain(agent: Command) -> None:
    assert agent.stop >= options(agent).drain_timeout + _GRACE


@pytest.mark.parametrize("app", APPS, ids=where)
def test_an_app_has_the_time_to_end(app: Command) -> None:
    assert app.stop > uvicorn_options(app)["timeout_graceful_shutdown"] > 0


@pytest.mark.parametrize("app", APPS, ids=where)
def test_an_app_is_there(app: Command) -> None:
    module, _, name = uvicorn_options(app)["app"].partition(":")
    assert f"{name} = FastAPI()" in (DOCKER / f"{module}.py").read_text()


@pytest.mark.parametrize("app", [app for app in APPS if "envoy" not in app.where], ids=where)
def test_an_app_asks_where_its_agent_listens(app: Command) -> None:
    address = agent_address(app)
    parse_address(app.where, address)
    if app.where == "shop.service":
        assert address == f"unix://{unit(DEPLOY / 'systemd' / 'waf.socket')['Socket']['ListenStream'][0]}"
        return
    [agent] = [each for each in AGENTS if each.where.partition(":")[0] == app.where.partition(":")[0]]
    [bind] = options(agent).bind
    if bind.startswith("unix:"):
        assert address == bind
    else:
        assert address.startswith("tcp://waf.shop.svc.cluster.local:")
        assert address.rpartition(":")[2] == bind.rpartition(":")[2]


@pytest.mark.parametrize("agent", [each for each in AGENTS if each.probes], ids=where)
def test_a_probe_asks_where_the_agent_answers(agent: Command) -> None:
    for probe in agent.probes:
        assert probe[:2] == ["python", "-c"]
        assert f"'http://{options(agent).http}/'" in probe[2]
        # Nobody outside of the container, or pod, gets at it.
        assert options(agent).http.startswith("127.0.0.1:")


# Compose


def test_compose_has_the_socket_of_the_agent_in_both_and_the_app_cannot_replace_it() -> None:
    services = documents(COMPOSE[0])[0]["services"]
    assert services["waf"]["volumes"] == ["sockets:/run/waf"]
    assert services["shop"]["volumes"] == ["sockets:/run/waf:ro"]
    assert services["waf"]["network_mode"] == "none"
    assert services["shop"]["ports"][0].endswith(":8000")


def test_envoy_asks_where_the_agent_and_the_app_are() -> None:
    [document] = documents(COMPOSE[1])
    clusters = documents(DOCKER / "front.yaml")[0]["static_resources"]["clusters"]
    found = {
        each["name"]: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"][
            "socket_address"
        ]
        for each in clusters
    }
    by_where = {each.where: each for each in ALL}
    agent, app = by_where["compose.envoy.yaml: waf"], by_where["compose.envoy.yaml: shop"]
    assert found["waf"] == {"address": "waf", "port_value": int(options(agent).ext_proc[0].rpartition(":")[2])}
    assert found["shop"] == {"address": "shop", "port_value": uvicorn_options(app)["port"]}
    services = document["services"]
    assert services["envoy"]["networks"] == ["front", "back"]
    assert services["waf"]["networks"] == services["shop"]["networks"] == ["back"]
    assert document["networks"]["back"] == {"internal": True}


# Kubernetes


def ports(container: Any) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in container.get("ports", ())}


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_probes_of_a_pod_ask_ports_and_paths_that_there_are(path: Path) -> None:
    by_where = {each.where: each for each in ALL}
    for place, pod in pods(path):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            command = by_where[f"{place}: {container['name']}"]
            for kind in ("startup", "readiness", "liveness"):
                asked = container.get(f"{kind}Probe", {}).get("httpGet")
                if asked is None:
                    continue
                port = ports(container)[asked["port"]]
                if command.serve is not None:
                    assert (options(command).http, asked["path"]) == (f"0.0.0.0:{port}", "/")
                else:
                    assert uvicorn_options(command)["port"] == port
                    assert f'@app.get("{asked["path"]}")' in (DOCKER / "main.py").read_text()


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_containers_may_do_little(path: Path) -> None:
    for place, pod in pods(path):
        assert pod["automountServiceAccountToken"] is False, place
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            # Only the app's own containers may not write where the socket is.
            for mount in container.get("volumeMounts", ()):
                if mount["name"] == "sockets":
                    assert mount.get("readOnly", False) is (container["name"] == "shop")


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_selectors_select(path: Path) -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in documents(path) if "template" in each["spec"]]
    for document in documents(path):
        spec = document["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is not None:
            assert selector.get("matchLabels", selector) in labels, document["kind"]
        pod = spec.get("template", {}).get("spec", {})
        mounted = {
            each["name"]
            for container in (*pod.get("initContainers", ()), *pod.get("containers", ()))
            for each in container.get("volumeMounts", ())
        }
        assert mounted == {each["name"] for each in pod.get("volumes", ())}


def test_a_sidecar_starts_before_the_app_and_outlives_it() -> None:
    [(_, pod)] = pods(DEPLOY / "kubernetes" / "sidecar.yaml")
    [sidecar] = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    [app] = [each for each in APPS if each.where.startswith("sidecar.yaml")]
    # What is left for it when the app has had all of its time.
    assert app.stop - uvicorn_options(app)["timeout_graceful_shutdown"] >= 5


def test_members_of_the_agents_group_may_connect_on_a_node() -> None:
    daemon, shop = (pod for _, pod in pods(DEPLOY / "kubernetes" / "node.yaml"))
    group = daemon["securityContext"]["runAsGroup"]
    [made] = daemon["initContainers"]
    assert made["command"] == ["install", "-d", "-m", "0750", "-o", str(group), "-g", str(group), "/run/waf"]
    assert shop["securityContext"]["supplementalGroups"] == [group]
    assert shop["securityContext"]["runAsUser"] != daemon["securityContext"]["runAsUser"]


def test_the_central_agent_is_scaled_and_reached_by_its_name() -> None:
    found = {
        (each["kind"], each["metadata"]["name"]): each for each in documents(DEPLOY / "kubernetes" / "central.yaml")
    }
    assert {each["metadata"]["namespace"] for each in found.values()} == {"shop"}
    deployment, service = found["Deployment", "waf"]["spec"], found["Service", "waf"]["spec"]
    [container] = deployment["template"]["spec"]["containers"]
    assert service["clusterIP"] == "None"
    [port] = service["ports"]
    assert ports(container)[port["targetPort"]] == port["port"]
    scaler = found["HorizontalPodAutoscaler", "waf"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "waf"
    # Who says how many there are is one alone. Of what it counts by, a share of the request, there has to be a request.
    assert "replicas" not in deployment
    assert "cpu" in container["resources"]["requests"]
    [rule] = found["NetworkPolicy", "waf"]["spec"]["ingress"]
    [let_in] = rule["ports"]
    assert let_in["port"] == port["name"]
    assert (
        rule["from"][0]["podSelector"]["matchLabels"] == found["Deployment", "shop"]["spec"]["selector"]["matchLabels"]
    )


# systemd


def test_the_units_fit_together() -> None:
    listening = unit(DEPLOY / "systemd" / "waf.socket")["Socket"]
    agent = unit(DEPLOY / "systemd" / "waf.service")
    app = unit(DEPLOY / "systemd" / "shop.service")
    [command] = [each for each in AGENTS if each.where == "waf.service"]
    assert options(command).bind == [f"systemd:{listening['FileDescriptorName'][0]}"]
    assert is_activated(options(command).bind[0])
    assert listening["SocketGroup"] == app["Service"]["Group"]
    assert agent["Unit"]["Requires"] == ["waf.socket"]
    for section in (agent, app):
        # Or else each worker is told twice.
        assert section["Service"]["KillMode"] == ["mixed"]


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    users = {
        pod["securityContext"]["runAsUser"] for path in KUBERNETES for place, pod in pods(path) if "node" not in place
    }
    assert users == {10001}
    assert "USER 10001:10001\n" in text
