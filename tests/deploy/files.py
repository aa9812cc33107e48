"""Reads the files of docs/pages/deploy: documents, units, and the commands in them. Starts nothing."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.docs.pages import DOCS

DEPLOY: Final = DOCS / "deploy"
DOCKER: Final = DEPLOY / "docker"
COMPOSE: Final = (DOCKER / "compose.yaml", DOCKER / "compose.envoy.yaml")
KUBERNETES: Final = tuple(sorted((DEPLOY / "kubernetes").glob("*.yaml")))
UNITS: Final = tuple(sorted((DEPLOY / "systemd").iterdir()))

_SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0}


class Command(NamedTuple):
    """A process that a file starts.

    ``stop``: seconds from SIGTERM until it is killed. ``probes``: commands that ask whether it is well.
    """

    where: str
    argv: Sequence[str]
    stop: float
    probes: Sequence[Sequence[str]] = ()
    environ: Mapping[str, str] = {}

    @property
    def serve(self) -> Sequence[str] | None:
        """The arguments of ``python -m asgi_agents.serve``, where that is what it is."""
        python, *rest = self.argv
        if Path(python).name != "python" or rest[:2] != ["-m", "asgi_agents.serve"]:
            return None
        return rest[2:]

    @property
    def uvicorn(self) -> Sequence[str] | None:
        """The arguments of ``uvicorn``, where that is what it is."""
        return self.argv[1:] if Path(self.argv[0]).name == "uvicorn" else None


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """The sections of a unit of systemd. A directive may be there several times."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and line[0] not in "#;":
            name, _, value = line.partition("=")
            section.setdefault(name, []).append(value)
    return found


def image_command() -> list[str]:
    """What the image starts by itself."""
    [line] = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    command: list[str] = yaml.safe_load(line.removeprefix("CMD "))
    return command


def pods(path: Path) -> Iterator[tuple[str, Any]]:
    """The pods of a file of Kubernetes, with the names of what makes them."""
    for document in documents(path):
        if "template" in document["spec"]:
            yield (
                f"{path.name}: {document['kind']} {document['metadata']['name']}",
                document["spec"]["template"]["spec"],
            )


def commands() -> Iterator[Command]:
    """All processes that all files start, other than Envoy."""
    for path in COMPOSE:
        for name, service in documents(path)[0]["services"].items():
            if "build" in service:
                probe = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
                yield Command(
                    f"{path.name}: {name}",
                    service.get("command", image_command()),
                    seconds(service["stop_grace_period"]),
                    [probe] if probe else [],
                )
    for path in KUBERNETES:
        for where, pod in pods(path):
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                # Before SIGTERM it may wait, within the same time.
                waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
                probes = [
                    probe for kind in ("startup", "readiness", "liveness") if (probe := container.get(f"{kind}Probe"))
                ]
                yield Command(
                    f"{where}: {container['name']}",
                    container.get("command", image_command()),
                    pod["terminationGracePeriodSeconds"] - waits,
                    [probe["exec"]["command"] for probe in probes if "exec" in probe],
                    {each["name"]: each["value"] for each in container.get("env", ())},
                )
    for path in UNITS:
        service = unit(path).get("Service")
        if service is not None:
            [started] = service["ExecStart"]
            told = dict(each.split("=", 1) for each in service.get("Environment", ()))
            yield Command(path.name, shlex.split(started), seconds(service["TimeoutStopSec"][0]), environ=told)


def seconds(text: str) -> float:
    """A time as compose and systemd write it: ``40``, ``40s``."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * _SECONDS[text[len(number) :] or "s"]
