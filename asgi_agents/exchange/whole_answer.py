"""An answer that is complete before it is judged, in the form in which its client will most likely read it."""

import json
from collections.abc import Sequence

from msgspec import Struct

from ..evaluation.text_judges import JudgeSet
from ..guardrails.body import Body, Parsed
from ..guardrails.dialect import Dialect
from ..guardrails.dialects.known import of_answer
from ..guardrails.dialects.unknown import PlainText
from ..guardrails.framing import TooComplexError, UnreadableError, decoded
from . import answer_form


class WholeAnswer(Struct, frozen=True):
    """What is judged of an answer.

    :ivar as_text: whether it is text, which is judged as a string of JSON.
    """

    body: Body
    as_text: bool = False

    @property
    def data(self) -> bytes:
        """What leaves, once it was judged."""
        assert self.body.data is not None
        return json.loads(self.body.data).encode() if self.as_text else self.body.data


def whole_answer(
    data: bytes, called: Dialect, dialects: Sequence[Dialect], status: int, judges: JudgeSet, *, may_be_json: bool
) -> WholeAnswer | None:
    """``data`` as it is judged. None: it is lines of JSON.

    :param may_be_json: whether nothing says that it is JSON. Then it may be text.
    :raises UnreadableError: for what nobody can judge.
    """
    try:
        parsed = Parsed(data)
        dialect = of_answer(called, parsed.value, dialects)
        return WholeAnswer(Body(data, answer_form.operations_of(dialect, status), judges, parsed=parsed))
    except UnreadableError as exc:
        if not may_be_json or isinstance(exc, TooComplexError) or answer_form.reads_as_json(data):
            raise
    if answer_form.is_lines_of_json(data):
        return None
    return WholeAnswer(Body(json.dumps(decoded(data)).encode(), PlainText().answer, judges), True)
