"""What a served agent's answers are in Envoy's words: header mutations, replies, and what it need not be shown. No I/O.

Which headers may be changed is Envoy's to say, by the filter's ``mutation_rules``. Unless they say otherwise it ignores
changes of ``host``, ``:authority``, ``:scheme``, ``:method`` and of all that begin with ``x-envoy``.
"""

from collections.abc import Mapping
from typing import Any, Final

from ...exchange.reply import Reply
from ...transports.grpc.ext_proc_messages import HeaderValue, HeaderValueOption, ProcessingMode, RawHeaders, messages

# Framing is the proxy's. What is said of the length is said where it can be: see `header_mutation`.
_FRAMING: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_LENGTH: Final = b"content-length"
_BODY_MODES: Final = ("request_body_mode", "response_body_mode")


def header_mutation(before: RawHeaders, after: RawHeaders, *, raw: bool, length: bool) -> Any | None:
    """What makes ``after`` of ``before``; None where that is nothing.

    Envoy removes first, and sets in order then. ``host`` is its ``:authority``.

    :param raw: write values as bytes, as Envoy has; else as text. It reads only what it writes itself, and of both at
        once it makes an error.
    :param length: whether the content-length may be changed: where the body is buffered. In all other modes Envoy takes
        it out by itself.
    """
    if before == after:
        return None
    old, new = _by_name(before), _by_name(after)
    mutation = messages.HeaderMutation()
    for name in old:
        if name not in new and _may_change(name, length=length):
            mutation.remove_headers.append(_written_name(name))
    for name, values in new.items():
        there = old.get(name, [])
        if values == there or not _may_change(name, length=length):
            continue
        if there and values[: len(there)] == there:
            added, appending = values[len(there) :], True
        else:
            added, appending = values, False
        for value in added:
            mutation.set_headers.append(_set(name, value, raw=raw, append=appending))
            appending = True
    return mutation if mutation.set_headers or mutation.remove_headers else None


def immediate_response(reply: Reply, *, raw: bool, details: str) -> Any:
    """``reply`` as Envoy sends it in the app's place. ``details`` is for its access log (RESPONSE_CODE_DETAILS)."""
    mutation = messages.HeaderMutation()
    seen: set[bytes] = set()
    for name, value in reply.headers:
        # Envoy counts the body itself.
        if name != _LENGTH and name not in _FRAMING:
            mutation.set_headers.append(_set(name, value, raw=raw, append=name in seen))
            seen.add(name)
    return messages.ImmediateResponse(status={"code": reply.status}, headers=mutation, body=reply.body, details=details)


def mode_override(known: Any | None, *, response_headers: bool, request_body: bool, response_body: bool) -> Any | None:
    """What Envoy need not send of an exchange, where it lets processors say so (``allow_mode_override``).

    :param known: the modes that it has said are set (``protocol_config``, from 1.34 on); None: it has not said. A
        body mode that is not set would be "none", so that nothing can be said then unless no body is wanted.
    :param response_headers: whether the head of the response is wanted; the others likewise.
    """
    wanted = dict(zip(_BODY_MODES, (request_body, response_body), strict=True))
    if known is None:
        if any(wanted.values()):
            return None
        modes = dict.fromkeys(_BODY_MODES, ProcessingMode.NONE)
        if response_headers:
            return ProcessingMode(**modes)
    else:
        configured = {name: getattr(known, name) for name in _BODY_MODES}
        if ProcessingMode.FULL_DUPLEX_STREAMED in configured.values():
            # It takes no override then.
            return None
        modes = {name: mode if wanted[name] else ProcessingMode.NONE for name, mode in configured.items()}
        if modes == configured and response_headers:
            return None
    headers = ProcessingMode.DEFAULT if response_headers else ProcessingMode.SKIP
    return ProcessingMode(response_header_mode=headers, **modes)


def _by_name(headers: RawHeaders) -> Mapping[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def _may_change(name: bytes, *, length: bool) -> bool:
    return length if name == _LENGTH else name not in _FRAMING


def _written_name(name: bytes) -> str:
    return ":authority" if name == b"host" else name.decode("latin-1")


def _set(name: bytes, value: bytes, *, raw: bool, append: bool) -> Any:
    field = (
        HeaderValue(key=_written_name(name), raw_value=value)
        if raw
        else HeaderValue(key=_written_name(name), value=value.decode("utf-8", "replace"))
    )
    if append:
        # Both: up to 1.40 Envoy's filter reads the flag alone. The action is 0 then, as in a message without one.
        return HeaderValueOption(
            header=field, append={"value": True}, append_action=HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
        )
    return HeaderValueOption(
        header=field,
        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        keep_empty_value=not value,
    )
