"""An agent that asks Open Policy Agent."""

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from ..agent import Agent
from ..errors import AgentProtocolError, ConfigurationError
from ..messages.naming import kind_of, named
from ..protocol import AgentResponse, AuditMetadata, HeaderOp, RequestHeadersEvent
from ..protocol.validation import is_sendable
from .opa_client import UNDEFINED, OpaClient
from .settings import own_headers, require_header, require_strings

_REASONS: Final = 32
#: Parameters of a query that are read. A request with more is refused: the policy would not see all of them.
_MOST_PARAMETERS: Final = 1000
_TOO_MANY: Final = AgentResponse.block(400, "Too many parameters", audit=AuditMetadata(reason_codes=("query",)))
_NOT_DEFINED: Final = AgentResponse.block(403, audit=AuditMetadata(reason_codes=("undefined",)))
_DENIED: Final = AgentResponse.block(403, audit=AuditMetadata(reason_codes=("policy",)))


class Opa(Agent):
    """Asks a policy of Open Policy Agent about each request and websocket handshake, over its REST API::

        AgentConfig("opa", Opa("http://127.0.0.1:8181/v1/data/app/authz"), after=["jwt"])

    The policy finds in ``input``: ``method``, ``path`` (decoded), ``parsed_path`` (its segments), ``parsed_query`` (a
    list of values for each name), ``headers`` (a list of values for each name of ``headers``), ``client_ip`` and
    ``protocol``. It decides with ``true`` or ``false``, or with an object:

    * ``allow``: ``true`` or ``false``,
    * ``status`` and ``body`` of the answer to a request that is denied, 403 without,
    * ``headers``, names to values: of that answer, or, of a request that is allowed, for the app,
    * ``reasons``, a list of strings for the audit record.

    A decision that is undefined denies. An OPA that does not answer, or with anything else, is a failure of the agent.

    :param url: of the document that decides: ``/v1/data/`` and its path.
    :param headers: those that the policy is shown. The policy logs of OPA have them.
    :param sets: the headers that the policy sets for the app. What clients write into them is taken out of their
        requests, and a decision that sets another one is a failure. None: any, and nothing is taken out.
    :param token: a bearer token for OPA itself.
    :raises ConfigurationError: for what can't work.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Iterable[str] = ("x-user", "x-scopes"),
        sets: Iterable[str] | None = None,
        token: str | None = None,
    ) -> None:
        self._headers = [require_header("Opa", "headers", name) for name in require_strings("Opa", "headers", headers)]
        self.read_headers = self._headers
        self._sets: frozenset[str] | None = None
        if sets is not None:
            self._sets = frozenset(require_header("Opa", "sets", name) for name in require_strings("Opa", "sets", sets))
            self.own_headers, self.replaced_headers = own_headers(self._sets)
        if token is not None and not (isinstance(token, str) and token.isascii() and is_sendable("x", token)):
            # Not the token itself.
            raise ConfigurationError(f"Opa: token is {kind_of(token)}, expected a bearer token")
        self._client = OpaClient(url, token)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        shown = self._input(event)
        if shown is None:
            return _TOO_MANY
        decision = await self._client.ask(shown)
        if decision is UNDEFINED:
            return _NOT_DEFINED
        if isinstance(decision, bool):
            return None if decision else _DENIED
        if not isinstance(decision, dict):
            raise AgentProtocolError(f"OPA: the decision is {kind_of(decision)}, expected a boolean or an object")
        return self._answer(decision)

    def _input(self, event: RequestHeadersEvent) -> Mapping[str, Any] | None:
        raw_path, _, query = event.uri.partition("?")
        # Decoded as servers do it: what the app finds its routes by.
        path = unquote(raw_path)
        try:
            parameters = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
        except ValueError:
            return None
        return {
            "method": event.method,
            "path": path,
            "parsed_path": path.removeprefix("/").split("/"),
            "parsed_query": parameters,
            "headers": {name: event.headers[name] for name in self._headers if name in event.headers},
            "client_ip": event.metadata.client_ip,
            "protocol": event.metadata.protocol,
        }

    def _answer(self, decision: dict[str, Any]) -> AgentResponse:
        """What an object says.

        :raises AgentProtocolError: where a field of it is not what it should be: nothing is guessed.
        """
        allow, reasons, headers = decision.get("allow"), decision.get("reasons", []), decision.get("headers", {})
        if not isinstance(allow, bool):
            raise AgentProtocolError(f"OPA: allow is {kind_of(allow)}, expected true or false")
        if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
            raise AgentProtocolError("OPA: reasons is no list of strings")
        if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
            raise AgentProtocolError("OPA: headers is no object of strings")
        if allow:
            if self._sets is not None and not self._sets.issuperset(map(str.lower, headers)):
                raise AgentProtocolError("OPA: headers has one that is not in sets")
            audit = AuditMetadata(reason_codes=reasons[:_REASONS])
            return AgentResponse.allow(request_headers=[HeaderOp.set(*item) for item in headers.items()], audit=audit)
        status, body = decision.get("status", 403), decision.get("body")
        if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599:
            raise AgentProtocolError(f"OPA: status is {named(status)}, expected 400 to 599")
        if not isinstance(body, str | None):
            raise AgentProtocolError(f"OPA: body is {kind_of(body)}, expected a string")
        audit = AuditMetadata(reason_codes=reasons[:_REASONS] or ("policy",))
        return AgentResponse.block(status, body, headers=headers or None, audit=audit)
