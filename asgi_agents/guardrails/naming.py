"""What the name of something looks like: an id, a word of a schema, a time.

A key says that a name is expected, and the form of what is there says whether it is one. A number of a card or of a
phone is none, whatever its key is.
"""

import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9_.:/+$#*\[\]-]{1,128}")
_LETTER: Final = re.compile(r"[A-Za-z]")
# More digits than the name of a model has, with its version and its date.
_MAX_DIGITS: Final = 11
# Ids of digits alone that are too short to be anything else.
_SHORT: Final = 6
_ROW: Final = re.compile(r"\d(?:[_.:/$#-]?\d){11}")
# As it happens, some have a long row of digits.
_UUID: Final = re.compile(
    r"(?=[0-9-]*[a-f])(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])", re.IGNORECASE
)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?")
# Of what is encoded or encrypted, the length says nothing.
_OPAQUE: Final = re.compile(r"[A-Za-z0-9_.:/+=$\[\]*-]*")

_IDS: Final = frozenset(
    {
        *("id", "item_id", "call_id", "response_id", "toolCallId", "tool_call_id", "tool_use_id", "system_fingerprint"),
        *("responseId", "previous_response_id", "prompt_cache_key", "safety_identifier", "file_id", "container_id"),
        *("messageId", "sourceId", "approvalId", "itemId", "event_id", "previous_item_id", "conversation_id"),
    }
)
_TIMES: Final = frozenset({"created_at", "expires_at", "createTime"})
_ENCODED: Final = frozenset(
    {
        *("obfuscation", "encrypted_content", "encrypted_index", "reasoningEncryptedContent"),
        *("signature", "thoughtSignature", "thought_signature"),
    }
)


def is_word(text: str) -> bool:
    """Whether it looks like a word of a schema, or the name of a member, a version or a model."""
    if _NAME.fullmatch(text) is None or _LETTER.search(text) is None:
        return False
    return len(text) <= _MAX_DIGITS or sum(map(str.isdigit, text)) <= _MAX_DIGITS


def is_id(text: str) -> bool:
    """Whether it looks like an id."""
    if _NAME.fullmatch(text) is None or (len(text) > _SHORT and _LETTER.search(text) is None):
        return False
    return _ROW.search(_UUID.sub("", text) if len(text) >= 32 else text) is None


def is_time(text: str) -> bool:
    """Whether it is a date, or a time with one."""
    return _TIME.fullmatch(text) is not None


def names(key: str, text: str) -> bool:
    """Whether a text names something, if that is what is expected under this key."""
    if key in _IDS:
        return is_id(text)
    if key in _ENCODED:
        return _OPAQUE.fullmatch(text) is not None
    return is_word(text) or (key in _TIMES and is_time(text))
