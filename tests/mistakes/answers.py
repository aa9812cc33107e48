"""Mistakes in what a hook returns."""

from typing import Final

from .mistake import Mistake


def _agent(body: str, hook: str = "on_request_headers", options: str = "") -> str:
    return f"""
class Mine(Agent):
    async def {hook}(self, event):
        return {body}

protect(app, agents=[AgentConfig("mine", Mine(){options})])
"""


ANSWERS: Final = (
    Mistake(
        title="True or False as an answer",
        code=_agent('event.header("x-api-key") == "s3cret"'),
        ask="/items",
        instead="`AgentResponse.allow()` or None, and `AgentResponse.block(401)`.",
    ),
    Mistake(
        title="A response of Starlette's as an answer",
        code=_agent('JSONResponse({"detail": "no"}, 403)'),
        ask="/items",
        instead="`AgentResponse.block(403, ...)`; `render_error=` makes the response that clients are sent.",
    ),
    Mistake(
        title="A method that is not called",
        code=_agent("AgentResponse.allow"),
        ask="/items",
        instead="`AgentResponse.allow()`",
    ),
    Mistake(
        title="The text of a block in place of its status",
        code=_agent('AgentResponse.block("missing api key")'),
        ask="/items",
        instead='`AgentResponse.block(401, "missing api key")`',
    ),
    Mistake(
        title="A number as the value of a header",
        code=_agent('AgentResponse.allow(request_headers=[HeaderOp.set("x-user", 1)])'),
        ask="/items",
        instead='`HeaderOp.set("x-user", "1")`',
    ),
    Mistake(
        title="The same in the headers of a block",
        code=_agent('AgentResponse.block(429, headers={"retry-after": 60})'),
        ask="/items",
        instead='`headers={"retry-after": "60"}`',
    ),
    Mistake(
        title="A header operation outside of a list",
        code=_agent('AgentResponse.allow(request_headers=HeaderOp.set("x-user", "1"))'),
        ask="/items",
        instead='`request_headers=[HeaderOp.set("x-user", "1")]`',
    ),
    Mistake(
        title="A header that belongs to the server",
        code=_agent('AgentResponse.allow(response_headers=[HeaderOp.set("content-length", "0")])'),
        ask="/items",
        instead="Leave it out: lengths of changed bodies are set by the middleware.",
    ),
    Mistake(
        title="Request headers when there is a response already",
        code=_agent('AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "1")])', "on_response_headers"),
        ask="/items",
        instead="`response_headers=[...]`, or the hook `on_request_headers`.",
    ),
    Mistake(
        title="A body changed by an agent that may only read",
        code=_agent(
            'AgentResponse.allow(response_body_mutation=BodyMutation(b"[]"))',
            "on_response_body_chunk",
        ),
        ask="/items",
        instead='`AgentConfig(..., body_access="write")`',
    ),
    Mistake(
        title="Text as a body",
        code=_agent(
            'AgentResponse.allow(response_body_mutation=BodyMutation("[]"))',
            "on_response_body_chunk",
            ', body_access="write"',
        ),
        ask="/items",
        instead='`BodyMutation("[]".encode())`',
    ),
)
