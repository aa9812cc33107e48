"""Which calls a guardrail judges, and which detections count."""

from typing import assert_type

from asgi_agents import Severity
from asgi_agents.guardrails import Call, CallPolicy, Guardrail, headers, models, tools, users


def external(call: Call) -> bool:
    """A condition of one's own."""
    return call.model != "internal"


assert_type(models("gpt-*", "o?"), CallPolicy)
assert_type(~users("admin"), CallPolicy)
assert_type(models("gpt-*") & ~users("admin") | tools("send_*"), CallPolicy)
assert_type(headers("x-user", "free-*") & external, CallPolicy)
assert_type(external | models("gpt-*"), CallPolicy)
assert_type(models("gpt-*")(Call(dialect="openai.chat")), bool)

Guardrail("pii", on={"output"}, when=models("gpt-*"))
Guardrail("pii", on={"output"}, when=external, min_severity="high")
Guardrail("pii", on={"output"}, min_severity=Severity.HIGH)

models(["gpt-*"])  # type: ignore[arg-type]
models("gpt-*") & "admin"  # type: ignore[operator]
Guardrail("pii", on={"output"}, when=models)  # type: ignore[arg-type]
Guardrail("pii", on={"output"}, min_severity="worst")  # type: ignore[arg-type]
