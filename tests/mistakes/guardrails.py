"""Mistakes with text guardrails."""

from typing import Final

from .mistake import Mistake

_EMAILS: Final = """
class Emails(TextGuardrail):
    async def check(self, window): ...
"""


def _guarded(guardrail: str) -> str:
    return f"""{_EMAILS}
protect(app, agents=[AgentConfig("emails", Emails())], guardrails=[{guardrail}])
"""


def _checking(returned: str) -> str:
    return _guarding(f"""
        return {returned}""")


def _guarding(body: str) -> str:
    return f"""
class Items(TextGuardrail):
    async def check(self, window):{body}

protect(app, agents=[AgentConfig("items", Items())], guardrails=[Guardrail("items", on={{"output"}})])
"""


GUARDRAILS: Final = (
    Mistake(
        title="A check that is no coroutine function",
        code="""
class Emails(TextGuardrail):
    def check(self, window):
        return []
""",
        instead="`async def check(self, window)`",
    ),
    Mistake(
        title="A misspelt check",
        code="""
class Emails(TextGuardrail):
    async def inspect(self, window): ...

protect(app, agents=[AgentConfig("emails", Emails())], guardrails=[Guardrail("emails", on={"output"})])
""",
        instead="`check`",
    ),
    Mistake(
        title="A settled that is a coroutine function",
        code="""
class Emails(TextGuardrail):
    async def check(self, window): ...

    async def settled(self, text):
        return 0
""",
        instead="`def settled(self, text)`. It is called for each event of a stream.",
    ),
    Mistake(
        title="One kind of text outside of a set",
        code='Guardrail("emails", on="output")',
        instead='`on={"output"}`',
    ),
    Mistake(
        title="A kind of text that does not exist",
        code='Guardrail("emails", on={"response"})',
        instead='`on={"output"}`',
    ),
    Mistake(
        title="No kind of text",
        code='Guardrail("emails")',
        instead='`Guardrail("emails", on={"output"})`',
    ),
    Mistake(
        title="An agent that does not exist",
        code=_guarded('Guardrail("email", on={"output"})'),
        instead='`Guardrail("emails", on={"output"})`',
    ),
    Mistake(
        title="An agent that does not judge text",
        code="""
protect(app, agents=[AgentConfig("waf", Waf())], guardrails=[Guardrail("waf", on={"input"})])
""",
        instead="A `TextGuardrail`, or an `Agent` with `on_guardrail_inspect`.",
    ),
    Mistake(
        title="The agent in place of its id",
        code=_guarded('Guardrail(Emails(), on={"output"})'),
        instead='`Guardrail("emails", on={"output"})`',
    ),
    Mistake(
        title="One guardrail without a list",
        code=f"""{_EMAILS}
protect(app, agents=[AgentConfig("emails", Emails())], guardrails=Guardrail("emails", on={{"output"}}))
""",
        instead='`guardrails=[Guardrail("emails", on={"output"})]`',
    ),
    Mistake(
        title="An id in place of a guardrail",
        code=_guarded('"emails"'),
        instead='`guardrails=[Guardrail("emails", on={"output"})]`',
    ),
    Mistake(
        title="What to do, of an agent that says so itself",
        code=_guarded('Guardrail("emails", on={"output"}, action="block")'),
        instead="`check` returns `[Block(reason)]`.",
    ),
    Mistake(
        title="A redaction of what the app has already",
        code="""
class Judge(Agent):
    async def on_guardrail_inspect(self, event): ...

protect(app, agents=[AgentConfig("judge", Judge())], guardrails=[Guardrail("judge", on={"input"}, overlap=True)])
""",
        instead='`action="block"`, or no `overlap`.',
    ),
    Mistake(
        title="A window that is no longer than what is held back",
        code=_guarded('Guardrail("emails", on={"output"}, hold=320, window=200)'),
        instead="No `window`: it is then four times `hold`, and at least 400.",
    ),
    Mistake(
        title="One category outside of a set",
        code='Guardrail("judge", on={"input"}, categories="violence")',
        instead='`categories={"violence"}`',
    ),
    Mistake(
        title="Words in place of operators, of what chooses calls",
        code='Guardrail("emails", on={"output"}, when=not models("internal"))',
        instead='`when=~models("internal")`',
    ),
    Mistake(
        title="A list of models",
        code='Guardrail("emails", on={"output"}, when=models(["gpt-*", "o?"]))',
        instead='`when=models("gpt-*", "o?")`',
    ),
    Mistake(
        title="A handler that asks a guardrail that nobody has configured",
        code=f"""
@app.get("/chat")
async def chat(agents: Agents):
    await agents.inspect("hello", guardrail="email")
{_guarded('Guardrail("emails", on={"output"})')}""",
        ask="/chat",
        instead='`guardrail="emails"`',
    ),
    Mistake(
        title="A decision outside of a list",
        code=_checking('Block("no items")'),
        ask="/items",
        instead='`[Block("no items")]`',
    ),
    Mistake(
        title="A generator in place of a list",
        code=_checking('(Redact(at, at + 1, "*") for at in range(window.fresh, len(window.text)))'),
        ask="/items",
        instead="`[Redact(...) for ...]`",
    ),
    Mistake(
        title="A redaction without its text",
        code=_checking("[Redact(0, 4, None)]"),
        ask="/items",
        instead='`Redact(0, 4, "")`, or `Redact(0, 4)`',
    ),
    Mistake(
        title="The span of a match as one argument",
        code=_checking('[Redact((0, 4), "[item]")]'),
        ask="/items",
        instead='`Redact(match.start(), match.end(), "[item]")`',
    ),
    Mistake(
        title="A span that is not within the window",
        code=_checking('[Redact(window.start, window.start + 80, "[item]")]'),
        ask="/items",
        instead="Spans are indices of `window.text`.",
    ),
    Mistake(
        title="The window taken for its text",
        code=_checking('[Block("no items")] if "item" in window else None'),
        ask="/items",
        instead='`"item" in window.text`',
    ),
    Mistake(
        title="A response of Starlette's as a decision",
        code=_checking('[JSONResponse({"detail": "no"}, 403)]'),
        ask="/items",
        instead='`[Block("no")]`',
    ),
    Mistake(
        title="An exception as a decision",
        code=_guarding("""
        raise HTTPException(403, "no items")"""),
        ask="/items",
        instead='`return [Block("no items")]`',
    ),
    Mistake(
        title="The block of other hooks",
        code=_guarding("""
        return [asgi_agents.Block(403, "no items")]"""),
        ask="/items",
        instead='`Block("no items")` of `asgi_agents.guardrails`',
    ),
)
