"""What all guardrail services have in common: JSON that is posted to a URL, and what comes of the answer."""

import ssl
from collections.abc import Mapping
from typing import Any, Final, TypedDict, Unpack

import httpx

from ..errors import AgentProtocolError, ConfigurationError, NotApplicableError
from ..guardrails.slots import Kind
from ..guardrails.text_guardrail import KIND
from ..messages.naming import kind_of
from ..protocol import (
    Answer,
    Detection,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    TextSpan,
)
from ..protocol.codec import decode_value, encode_value
from ..transports.http import HttpTransport
from ..transports.http_origin import TransportFactory
from ..transports.tls import ClientCertificate
from .masking import replaced_spans

#: The category of what a service has masked: it does not say what it was.
MASKED: Final = "masked"
#: What a client is told where a service has blocked a text and has not said why.
BLOCKED: Final = "The text was blocked by a guardrail"

_INSPECTIONS: Final = frozenset({EventType.GUARDRAIL_INSPECT})
#: Texts that a model has written. All others are for it.
_ANSWERED: Final[frozenset[Kind]] = frozenset({"output", "tool_call", "reasoning"})
# The service does not take what was asked, which is made of the text of a client: with it one could open the breaker.
_REFUSALS: Final = frozenset({400, 422})


class HttpOptions(TypedDict, total=False):
    """How a service is reached: parameters of :class:`~asgi_agents.HttpTransport`, where they are explained."""

    headers: Mapping[str, str] | None
    verify: ssl.SSLContext | bool | str
    cert: ClientCertificate | None
    uds: str | None
    transport: httpx.AsyncBaseTransport | TransportFactory | None
    max_answer_bytes: int


class GuardrailService:
    """A guardrail service of others, reached over HTTP: a transport that carries ``guardrail_inspect`` alone.

    Its failures are those of any agent. It can't be connected to, its answer is no answer of its format, or its status
    is another than 200: an agent error. It does not answer within ``AgentConfig.timeout``: a timeout. With status 413,
    and with 400 and 422, it refuses the text: the circuit breaker does not count that, for a client can bring it about.
    A call is never repeated. Credentials are shown nowhere.

    An empty text is not sent: there is nothing in it to find.

    :cvar finds: the categories of detections that :class:`~asgi_agents.guardrails.Guardrail` is to act on, where there
        are no others. None: any. A guardrail with ``categories`` that has none of these is refused.
    :cvar says_severity: whether the service says how severe something is. A guardrail with ``min_severity`` is refused
        otherwise.
    """

    kind = "http"
    remote = True
    events: frozenset[EventType] | None = _INSPECTIONS
    carries = _INSPECTIONS
    finds: frozenset[str] | None = None
    says_severity: bool = True

    def __init__(self, *endpoints: "ServiceEndpoint") -> None:
        self._endpoints = endpoints

    @property
    def address(self) -> str:
        """Where the service is, for messages: host and port, or the path of a Unix socket."""
        return self._endpoints[0].address

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoints[0].shown!r}>"

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> Answer | None:
        """Ask the service about the text of ``event``.

        :raises AgentConnectionError: it could not be reached, or the connection broke before it answered.
        :raises AgentProtocolError: it answered with something that its format does not allow.
        :raises NotApplicableError: it answered 400 or 422.
        :raises EventTooLargeError: it answered 413.
        """
        if not isinstance(event, GuardrailInspectEvent):
            raise AgentProtocolError(f"{type(self).__name__} is asked about texts, and not {event.event_type.value}")
        return await self.inspect(event) if event.content else GuardrailResponse(detected=False)

    async def inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        """What the service says of the text of ``event``. Raises as :meth:`call` does."""
        raise NotImplementedError(f"{type(self).__name__} has no inspect(self, event)")

    async def connect(self) -> None:
        """See whether the service can be connected to. It is sent nothing. Raises AgentConnectionError."""
        await self._endpoints[0].connect()

    async def aclose(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.aclose()

    async def retire(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.retire()


class ServiceEndpoint(HttpTransport):
    """A URL of a service, to which JSON is posted that is in the service's format.

    :param where: what is configured, for messages: they are about the class that the user has written.
    :param secrets: headers with credentials, beside those of the user.
    """

    def __init__(
        self, where: str, url: str, secrets: Mapping[str, str] | None = None, **options: Unpack[HttpOptions]
    ) -> None:
        given = options.get("headers") or {}
        if secrets and isinstance(given, Mapping):
            twice = sorted({name.lower() for name in given if isinstance(name, str)} & secrets.keys())
            if twice:
                raise ConfigurationError(f"{where}: headers has {twice[0]!r} beside api_key, expected one of them")
            options["headers"] = {**given, **secrets}
        try:
            super().__init__(url, **options)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{where}: {str(exc).removeprefix('HttpTransport: ')}") from exc

    @property
    def shown(self) -> str:
        """The URL without its query, which may have credentials in it."""
        return str(self._url.copy_with(query=None))

    async def ask(self, question: Any, answer: Any) -> Any:
        """Post ``question`` and return the answer as a value of the type ``answer``.

        :raises AgentError: as :meth:`GuardrailService.call` does.
        """
        data = await self.post(encode_value(question, Encoding.JSON, "question"))
        return decode_value(answer, data, Encoding.JSON)

    def _check_status(self, status: int) -> None:
        if status in _REFUSALS:
            raise NotApplicableError(f"it answered {status}: it does not take what it was asked")
        super()._check_status(status)


def below(url: object, path: str) -> Any:
    """``url`` with ``path`` behind it, unless it ends so. What is no text is for the transport to refuse."""
    if not isinstance(url, str):
        return url
    base, mark, query = url.partition("?")
    base = base.rstrip("/")
    return f"{base if base.endswith(path) else base + path}{mark}{query}"


def key_header(where: str, name: str, api_key: object, prefix: str = "") -> dict[str, str]:
    """The header that has the key in it; none where there is no key. Raises ConfigurationError, without the key."""
    if api_key is None:
        return {}
    if not isinstance(api_key, str) or not api_key:
        got = "an empty str" if api_key == "" else kind_of(api_key)
        raise ConfigurationError(f"{where}: api_key is {got}, expected a str that is not empty")
    if not (api_key.isascii() and api_key.isprintable()) or api_key.strip() != api_key:
        raise ConfigurationError(f"{where}: api_key, expected visible ASCII characters, with blanks only between them")
    return {name: f"{prefix}{api_key}"}


def is_answered(event: GuardrailInspectEvent) -> bool:
    """Whether the text was written by a model. What a handler asks about, and says nothing of, is for it."""
    return event.metadata.get(KIND) in _ANSWERED


def passed() -> GuardrailResponse:
    """Nothing was found."""
    return GuardrailResponse(detected=False)


def blocked(reason: str | None, *, description: str = "") -> GuardrailResponse:
    """The text must not pass, whatever ``Guardrail.action`` is. The client is told ``reason``."""
    found = Detection(category=reason or BLOCKED, description=description, action="block")
    return GuardrailResponse(detected=True, confidence=1.0, detections=[found])


def masked(content: str, text: str) -> GuardrailResponse:
    """``text`` is to take the place of ``content``: as spans of words, so that streams need not wait for their end."""
    spans = replaced_spans(content, text)
    return GuardrailResponse(
        detected=bool(spans),
        confidence=1.0 if spans else 0.0,
        detections=[
            Detection(category=MASKED, description="", span=TextSpan(start, end), replacement=new)
            for start, end, new in spans
        ],
        redacted_content=text if spans else None,
    )
