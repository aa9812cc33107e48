"""The ways of Envoy itself, in front of the app: it asks an agent that is served here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asgi_agents import Agent, ConfigurationError, EventType
from asgi_agents.serve import agent_app, serve_grpc
from asgi_agents.serve.authorization import ASKED
from asgi_agents.serve.grpc.ext_authz import ExtAuthzService
from asgi_agents.serve.grpc.ext_proc import ExtProcService
from asgi_agents.serve.grpc.service import GrpcService
from tests.support.envoy import HTTP_FILTERS, cluster, envoy, ext_proc
from tests.support.servers import serve

from .agents import Judge, Texts, agent_of
from .app import ROUTING, app
from .case import Case, Kind, Outcome
from .way import HURRY, PATIENCE, Way, as_it_is
from .ways import events_of, restated_over_http, said_by_ext_authz, said_by_proxies

_ALL: Final = {"patterns": [{"safe_regex": {"regex": ".*"}}]}
# What an agent says for routing is for Envoy to use: here it puts it into a header that the app is shown.
_TOLD: Final = {
    "ext_proc": "%DYNAMIC_METADATA(asgi_agents:tier)%",
    "ext_authz": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:tier)%",
}


@dataclass(frozen=True)
class Setting:
    """What cases have to have in common to be asked of the same Envoy."""

    kind: Kind
    mode: str
    opens: bool
    hurried: bool

    @classmethod
    def of(cls, case: Case) -> "Setting":
        return cls(case.kind, case.mode, case.opens, case.hurried)


@dataclass(frozen=True, kw_only=True)
class Fronted(Way):
    """A way of Envoy's.

    :ivar filter: the filter that asks the agent.
    :ivar service: what is served over gRPC; None: ``agent_app``.
    """

    filter: Callable[[Setting], dict[str, Any]]
    service: Callable[[Agent], GrpcService] | None


@contextmanager
def behind_envoy(way: Fronted, setting: Setting, directory: Path) -> Iterator[tuple[str, Judge | Texts]]:
    """The URL of an Envoy in front of the app, and the agent that it asks."""
    agent = agent_of(setting.kind)
    with ExitStack() as stack:
        if way.service is None:
            address = stack.enter_context(serve(agent_app(agent, api="ext_authz")))
        else:
            address = _serve(stack, stack.enter_context(start_blocking_portal()), way.service(agent))
        upstream = stack.enter_context(serve(app, ws="websockets-sansio"))
        named = {name: value for name, value in _TOLD.items() if name in way.name}
        told = [
            {"header": {"key": f"{ROUTING}tier", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for value in named.values()
        ]
        route = {"match": {"prefix": "/"}, "route": {"cluster": "app"}, "request_headers_to_add": told}
        hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
        manager = {"route_config": {"virtual_hosts": hosts}, "upgrade_configs": [{"upgrade_type": "websocket"}]}
        clusters = [cluster("agent", _place(address), http2=way.service is not None)]
        url = stack.enter_context(envoy(directory, [way.filter(setting)], _place(upstream), clusters, manager))
        yield url, agent


def _serve(stack: ExitStack, portal: BlockingPortal, service: GrpcService) -> str:
    future, address = portal.start_task(partial(serve_grpc, [service], "127.0.0.1:0"))
    stack.callback(future.cancel)
    return str(address)


def _place(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


# The filters


def _ext_proc(setting: Setting) -> dict[str, Any]:
    mode = {"buffer": "BUFFERED", "stream": "STREAMED"}[setting.mode]
    if setting.kind is Kind.TEXTS:
        mode = "FULL_DUPLEX_STREAMED"
    trailers = "SEND" if setting.kind is Kind.TEXTS else "SKIP"
    return ext_proc(
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": mode,
            "response_body_mode": mode,
            "request_trailer_mode": trailers,
            "response_trailer_mode": trailers,
        },
        message_timeout=f"{HURRY if setting.hurried else PATIENCE}s",
        failure_mode_allow=setting.opens,
        metadata_options={"receiving_namespaces": {"untyped": ["asgi_agents", "asgi_agents.audit"]}},
    )


def _ext_authz(setting: Setting, **asks: Any) -> dict[str, Any]:
    config = {
        "@type": f"{HTTP_FILTERS}.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": setting.opens,
        **asks,
    }
    if setting.kind is Kind.BODIES:
        config["with_request_body"] = {"max_request_bytes": 1024 * 1024, "pack_as_bytes": True}
    return {"name": "envoy.filters.http.ext_authz", "typed_config": config}


def _timeout(setting: Setting) -> str:
    return f"{HURRY if setting.hurried else PATIENCE}s"


def _by_grpc(setting: Setting) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "agent"}, "timeout": _timeout(setting)}
    return _ext_authz(setting, grpc_service=service, encode_raw_headers=True)


def _by_http(setting: Setting) -> dict[str, Any]:
    return _ext_authz(
        setting,
        http_service={
            "server_uri": {"uri": "http://agent/", "cluster": "agent", "timeout": _timeout(setting)},
            "authorization_response": {"allowed_upstream_headers": {"patterns": [{"prefix": "x-"}]}},
        },
        allowed_headers=_ALL,
        # Or else the agent's server would take the question for a handshake of its own.
        disallowed_headers={"patterns": [{"exact": "upgrade"}]},
    )


# What they carry


def _refused(*serves: Callable[[Agent], object]) -> Callable[[Case], str]:
    def refusal(case: Case) -> str:
        try:
            for make in serves:
                make(agent_of(case.kind))
        except ConfigurationError as exc:
            return str(exc)
        return ""

    return refusal


def _never_upgrades(case: Case) -> bool:
    """Envoy shows no messages of websockets: an agent that judges them has failed."""
    return case.messages is not None and not ExtProcService(agent_of(case.kind))._wanted.upgrades


def _fails_with(
    statuses: Mapping[int, int], then: Callable[[Case, Outcome], Outcome]
) -> Callable[[Case, Outcome], Outcome]:
    """What a failure means is Envoy's to say, and so is the reply."""

    def restated(case: Case, outcome: Outcome) -> Outcome:
        if outcome.failed:
            return replace(outcome, status=statuses[outcome.status], headers={}, body=b"")
        return then(case, outcome)

    return restated


def _as_text(case: Case, outcome: Outcome) -> Outcome:
    """Envoy writes ``!`` for what is no UTF-8 in a header, unless it is told to send bytes, which it can over gRPC."""
    outcome = restated_over_http(case, outcome)
    seen = outcome.app
    if seen is None or "x-odd" not in seen.headers:
        return outcome
    return replace(outcome, app=replace(seen, headers={**seen.headers, "x-seen": "False"}))


EXT_PROC: Final = Fronted(
    name="Envoy, ext_proc",
    refusal=_refused(ExtProcService),
    asked=lambda kind: events_of(kind) - {EventType.WEBSOCKET_FRAME},
    fails=_never_upgrades,
    passes_pieces=True,
    restated=_fails_with({503: 500, 504: 504}, as_it_is),
    filter=_ext_proc,
    service=ExtProcService,
)
EXT_AUTHZ: Final = Fronted(
    name="Envoy, ext_authz",
    refusal=_refused(ExtAuthzService),
    asked=lambda kind: events_of(kind) & (ASKED | {EventType.REQUEST_COMPLETE}),
    said=said_by_ext_authz,
    restated=_fails_with({503: 403, 504: 403}, as_it_is),
    filter=_by_grpc,
    service=ExtAuthzService,
)
EXT_AUTHZ_OVER_HTTP: Final = Fronted(
    name="Envoy, ext_authz over HTTP",
    refusal=_refused(partial(agent_app, api="ext_authz")),
    asked=lambda kind: events_of(kind) & (ASKED | {EventType.REQUEST_COMPLETE}),
    said=partial(said_by_proxies, "ext_authz"),
    restated=_fails_with({503: 403, 504: 403}, _as_text),
    filter=_by_http,
    service=None,
)
ENVOYS: Final = (EXT_PROC, EXT_AUTHZ, EXT_AUTHZ_OVER_HTTP)
