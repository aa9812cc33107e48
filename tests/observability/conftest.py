from collections.abc import Iterator

import pytest

from .spans import Spans


@pytest.fixture
def spans(caplog: pytest.LogCaptureFixture) -> Iterator[Spans]:
    """All spans that the test makes have ended when it has, and OpenTelemetry has had nothing to complain of."""
    spans = Spans()
    yield spans
    assert spans.unended == []
    complaints = [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]
    assert [(record.name, record.getMessage()) for record in complaints] == []
