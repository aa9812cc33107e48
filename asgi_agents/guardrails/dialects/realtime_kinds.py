"""The events of OpenAI's Realtime API, and what is known as one."""

from typing import Final

from ..json_text import JSON

#: Events that continue or end a text, without `.delta`: which event ends it, and which field repeats it there.
TEXT_EVENTS: Final[dict[str, tuple[str, str]]] = {
    "response.output_text": ("done", "text"),
    "response.text": ("done", "text"),
    "response.output_audio_transcript": ("done", "transcript"),
    "response.audio_transcript": ("done", "transcript"),
    "conversation.item.input_audio_transcription": ("completed", "transcript"),
}
CALL_EVENTS: Final = frozenset({"response.function_call_arguments", "response.mcp_call_arguments"})
AUDIO: Final = frozenset({"response.output_audio", "response.audio", "session.output_audio"})
# The events of an app, and of a client. Others that are called alike are other apps': nothing is known of their texts.
_OF_APPS: Final = frozenset(
    {
        *("session.created", "session.updated", "session.closed", "conversation.created", "rate_limits.updated"),
        *("transcription_session.created", "transcription_session.updated", "response.created", "response.done"),
        *(f"conversation.item.{what}" for what in ("created", "added", "done", "retrieved", "deleted", "truncated")),
        *(
            f"conversation.item.input_audio_transcription.{what}"
            for what in ("delta", "segment", "completed", "failed")
        ),
        *(f"input_audio_buffer.{what}" for what in ("committed", "cleared", "speech_started", "speech_stopped")),
        *("input_audio_buffer.timeout_triggered", "input_audio_buffer.dtmf_event_received"),
        *(f"output_audio_buffer.{what}" for what in ("started", "stopped", "cleared")),
        *(f"response.{of}.{what}" for of in ("output_item", "content_part") for what in ("added", "done")),
        *(f"{of}.{what}" for of in (*TEXT_EVENTS, *CALL_EVENTS, *AUDIO) for what in ("delta", "done")),
        *("session.input_transcript.delta", "session.output_transcript.delta"),
        *(f"{of}.{what}" for of in ("response.mcp_call", "mcp_list_tools") for what in ("in_progress", "completed")),
        *("response.mcp_call.failed", "mcp_list_tools.failed"),
    }
)
_OF_CLIENTS: Final = frozenset(
    {
        *("session.update", "session.close", "transcription_session.update", "response.create", "response.cancel"),
        *("input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear"),
        *("session.input_audio_buffer.append", "output_audio_buffer.clear"),
        *(f"conversation.item.{what}" for what in ("create", "retrieve", "truncate", "delete")),
    }
)
_FIRST: Final = frozenset({"session.created", "transcription_session.created"})
_PATHS: Final = frozenset({"/realtime", "/v1/realtime"})


def knows(value: JSON, *, from_client: bool) -> bool:
    """Whether a message is an event of the Realtime API."""
    return _is_one_of(value, _OF_CLIENTS if from_client else _OF_APPS)


def knows_path(path: str) -> bool:
    """Whether it is the path of the Realtime API. What only ends like it may be a name that a client has chosen."""
    return path.rstrip("/") in _PATHS


def begins(value: JSON) -> bool:
    """Whether a message is the first one of an app that speaks it."""
    return _is_one_of(value, _FIRST)


def _is_one_of(value: JSON, kinds: frozenset[str]) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind in kinds
