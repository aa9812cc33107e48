"""One request and its response, as an operation describes them."""

from collections.abc import Callable
from typing import Final

from ...concurrency.own_threads import OwnThreads
from ...errors import AgentError
from ...protocol import RequestHeadersEvent, ResponseHeadersEvent
from ...protocol.events import BodyChunkEvent
from .answers import Violation, announces_body
from .description import Target
from .document import ApiDocument
from .forms import form_violations
from .json_bodies import json_violations
from .operation import DescribedResponse, Media

Judge = Callable[[bytes], list[Violation]]

# Bytes of a body that are judged without a thread.
_AT_ONCE: Final = 16 * 1024
_NO_BODY: Final = frozenset({204, 205, 304})


class JudgedBody:
    """A body that is judged once all of it is there."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._pieces: list[bytes] = []

    async def found(self, event: BodyChunkEvent, threads: OwnThreads) -> list[Violation] | None:
        """What is wrong with it; None: more of it is to come."""
        self._pieces.append(event.data)
        if not event.is_last:
            return None
        data = b"".join(self._pieces)
        self._pieces = []
        return self._judge(data) if len(data) <= _AT_ONCE else await threads.run(self._judge, data)


class JudgedExchange:
    """:param target: None: neither the request nor its response is described."""

    def __init__(self, target: Target | None, method: str) -> None:
        self._operation = None if target is None else target.operation
        self._values = {} if target is None else target.values
        self._wrong = None if target is None else target.wrong
        self._method = method
        #: None: it is not judged.
        self.request: JudgedBody | None = None
        self.response: JudgedBody | None = None

    def request_head(self, event: RequestHeadersEvent) -> tuple[list[Violation], list[Violation]]:
        """What is wrong, and what is if no body comes. Chooses what judges the body."""
        operation = self._operation
        if operation is None:
            return [] if self._wrong is None else [self._wrong], []
        found = operation.head(event, self._values)
        if operation.body is None:
            return found, []
        content_type = event.header("content-type")
        media = operation.body.of(content_type)
        if media is None:
            rule, expected = f"{operation.body.pointer}/content", tuple(operation.body.media)
            wrong = Violation("content_type", "content-type", "unsupported", rule, 415, expected=expected)
            if announces_body(event):
                return found or [wrong], []
            self.request = JudgedBody(lambda data: [wrong])
        else:
            self.request = _body_of(media, operation.document, content_type or "")
        if operation.body.required and self.request is not None:
            return found, [Violation("body", "", "missing", f"{operation.body.pointer}/required")]
        return found, []

    def response_head(self, event: ResponseHeadersEvent) -> list[Violation]:
        """What is wrong in status and headers. Chooses what judges the body."""
        if self._operation is None:
            return []
        responses = self._operation.responses
        status = str(event.status)
        response = responses.get(status) or responses.get(f"{status[0]}XX") or responses.get("DEFAULT")
        if response is None:
            # Of redirects and errors descriptions rarely say anything: those of an HTTPException are not in FastAPI's.
            if status[0] != "2":
                return []
            return [Violation("response_status", "", "undocumented", f"{self._operation.pointer}/responses")]
        bare = self._method == "HEAD" or event.status in _NO_BODY or event.header("content-length") == "0"
        self.response = None if bare else _body_of_response(response, event)
        return response.head(event, has_body=not bare)


def _body_of(media: Media, document: ApiDocument, content_type: str) -> JudgedBody | None:
    schema = media.schema
    if schema is None:
        return None
    if media.kind == "json":
        return JudgedBody(lambda data: json_violations(document, schema, data))
    return JudgedBody(lambda data: form_violations(document, schema, data, content_type))


def _body_of_response(response: DescribedResponse, event: ResponseHeadersEvent) -> JudgedBody | None:
    media = response.media(event.header("content-type"))
    if media is None or media.kind != "json":
        return None
    schema = media.schema
    assert schema is not None

    encoded = event.header("content-encoding") not in (None, "identity")

    def judge(data: bytes) -> list[Violation]:
        found = json_violations(response.document, schema, data)
        if encoded and any(one.problem == "unreadable" for one in found):
            raise AgentError("the response is compressed, expected AgentConfig(..., decode=True)")
        return [one._replace(place="response_body") for one in found]

    return JudgedBody(judge)
