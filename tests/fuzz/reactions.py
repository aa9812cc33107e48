"""What an agent does with an event that it is shown, and what that has to come to."""

from typing import Final

from msgspec import Struct

from asgi_agents import AgentResponse, HeaderOp
from asgi_agents.protocol import Challenge, EventType, WebSocketClose, WebSocketDrop

from .choices import Choices

#: What an agent that may set no such header sets all the same.
EVIL: Final = "evil"
#: The header of the app's own responses; no agent touches it.
APP_HEADER: Final = (b"x-app", b"1")
_FORBIDDEN_OPS: Final = (
    HeaderOp.set("content-length", EVIL),
    HeaderOp.add("Transfer-Encoding", EVIL),
    HeaderOp.set("host", EVIL),
    HeaderOp.add("sec-websocket-accept", EVIL),
    HeaderOp.set("x-ok", f"{EVIL}\r\nx: y"),
    HeaderOp.set("x y", EVIL),
)
_DENIALS: Final = (
    AgentResponse.block(403, "denied"),
    AgentResponse.block(451, headers={"x-why": "because"}),
    AgentResponse.block(429, "", response_headers=[HeaderOp.set("x-op", "1")]),
    AgentResponse.redirect("/elsewhere"),
    AgentResponse.challenge("bearer", {"realm": "x"}),
    AgentResponse(decision=Challenge("captcha")),
    AgentResponse(websocket_decision=WebSocketDrop()),
    AgentResponse(websocket_decision=WebSocketClose(4001, "é" * 100)),
)
_ILLEGAL: Final = (
    AgentResponse.block(99),
    AgentResponse.block(403, headers={"content-length": EVIL}),
    AgentResponse(websocket_decision=WebSocketClose(1005)),
    AgentResponse.redirect("/\r\nx"),
    AgentResponse(version=3),
)
_OPS: Final = (
    [HeaderOp.set("x-op", "1"), HeaderOp.remove("x-none")],
    [HeaderOp.add("set-cookie", "a=b")],
    [HeaderOp.remove("accept"), HeaderOp.set("content-type", "text/plain")],
)


class Reaction(Struct, frozen=True):
    """What an agent does with one event.

    ``suspends``: checkpoints before it answers, or seconds as a float.
    """

    kind: str = "allow"
    answer: AgentResponse | None = None
    needs_more: bool = False
    suspends: int | float = 0

    def outcome(self, *, writes: bool, event_type: EventType) -> str:
        """``allow``, ``deny`` or ``fail``: what it has to come to."""
        match self.kind:
            case "allow":
                return "allow"
            case "ops":
                # In answer to a piece of a body they may come too late: then the agent has failed after all, see
                # `check_decider`. For what passes that makes no difference: where it fails closed, nothing follows.
                assert self.answer is not None
                misfits = (self.answer.request_headers and event_type not in _BEFORE_THE_APP) or (
                    self.answer.response_headers and event_type not in _BEFORE_THE_CLIENT
                )
                return "fail" if misfits else "allow"
            case "deny":
                return "deny"
            case "mutate" | "drop":
                return "allow" if writes or event_type not in _BODIES else "fail"
            case _:
                return "fail"

    def mutated(self, data: bytes) -> bytes:
        """What an allowed writer makes of a chunk."""
        match self.kind:
            case "mutate":
                return b"[" + data + b"]"
            case "drop":
                return b""
            case _:
                return data


_BODIES: Final = frozenset({EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK})
#: Events whose answers may have operations on the headers of requests, and of responses.
_BEFORE_THE_APP: Final = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
_BEFORE_THE_CLIENT: Final = _BEFORE_THE_APP | {EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK}


def reaction(choices: Choices) -> Reaction:
    """Mostly consent: else nothing ever gets anywhere."""
    needs_more = choices.one_in(8)
    suspends = choices.pick((0, 0, 1, 2, 0.5, 5))
    match choices.pick(("allow", "allow", "allow", "allow", "ops", "deny", "mutate", "drop", "fail")):
        case "ops":
            ops = choices.pick(_OPS)
            on_request, on_response = choices.pick(((ops, ()), ((), ops), (ops, ops)))
            answer = AgentResponse.allow(request_headers=on_request, response_headers=on_response)
            return Reaction("ops", answer, False, suspends)
        case "deny":
            return Reaction("deny", _more(choices.pick(_DENIALS), needs_more), needs_more, suspends)
        case "mutate" | "drop" as kind:
            return Reaction(kind, None, needs_more, suspends)
        case "fail":
            match choices.below(7):
                case 0:
                    return Reaction("raise", suspends=suspends)
                case 1:
                    return Reaction("hang", suspends=suspends)
                case 2:
                    return Reaction("garbage", suspends=suspends)
                case 3:
                    return Reaction("cancelled", suspends=suspends)
                case 4:
                    return Reaction("misfit", suspends=suspends)
                case 5:
                    op = choices.pick(_FORBIDDEN_OPS)
                    return Reaction("illegal", AgentResponse.allow(request_headers=[op], response_headers=[op]))
                case _:
                    return Reaction("illegal", choices.pick(_ILLEGAL))
        case _:
            return Reaction("allow", _more(AgentResponse(), needs_more) if needs_more else None, needs_more, suspends)


def _more(response: AgentResponse, needs_more: bool) -> AgentResponse:
    return AgentResponse(
        decision=response.decision,
        response_headers=response.response_headers,
        websocket_decision=response.websocket_decision,
        needs_more=needs_more,
    )
