"""Defects in what endpoints say about their agents."""

from typing import Final

from .defect import Defect

ENDPOINTS: Final = (
    Defect(
        "a-weaker-failure-mode-will-do",
        "evaluation/endpoint_policy.py",
        "            if mode is FailureMode.CLOSED and agent.failure_mode is not FailureMode.CLOSED:\n",
        "            if mode is not FailureMode.CLOSED and agent.failure_mode is not FailureMode.CLOSED:\n",
        "A handler whose agent is fail-closed runs where it was asked fail-open.",
        ("tests/endpoints/test_enforcement.py",),
    ),
    Defect(
        "copies-of-a-mark-count",
        "routing/marks.py",
        "    return mark if isinstance(mark, PolicyMark) and mark.owner is thing else None\n",
        "    return mark if isinstance(mark, PolicyMark) else None\n",
        "A handler gets the agents of another, whose attributes were copied to it.",
        ("tests/endpoints/test_policies.py",),
    ),
    Defect(
        "policies-within-other-agents-are-taken-over",
        "routing/matching.py",
        "            if asks_agents(wrapped):\n",
        "            if False:\n",
        "A mounted app that has agents of its own answers 503, because the agents around are others.",
        ("tests/endpoints/test_policies.py",),
    ),
    Defect(
        "policies-of-routes-that-come-later-are-missed",
        "routing/finder.py",
        "        if lasts and not marks.used:\n",
        "        if lasts:\n",
        "A guarded route that is added while the app serves answers 503.",
        ("tests/endpoints/test_policies.py",),
    ),
    Defect(
        "included-routers-have-no-policy",
        "routing/matching.py",
        "        around = around.within(route.original_router)\n        matched,",
        "        matched,",
        "The endpoints of an APIRouter with a policy answer 503.",
        ("tests/endpoints/test_policies.py",),
    ),
    Defect(
        "head-has-no-policy",
        "routing/marks.py",
        '    return "get" if method == "HEAD" and not hasattr(endpoint, "head") else method.lower()\n',
        "    return method.lower()\n",
        "HEAD of an HTTPEndpoint answers 503.",
        ("tests/endpoints/test_policies.py",),
    ),
    Defect(
        "an-agent-that-is-missing-is-left-out",
        "routing/finder.py",
        "            refusal=None if fault is None else ",
        "            refusal=None if fault is not None else ",
        "A handler runs without an agent that its policy names.",
        ("tests/endpoints/test_enforcement.py",),
    ),
    Defect(
        "a-router-lets-everything-run",
        "routing/router_checks.py",
        "    return None if mark is None or is_done(mark.policy, scope) else mark\n",
        "    return None\n",
        "An endpoint of a router with a policy runs without its agents where a middleware rewrites the path.",
        ("tests/endpoints/test_enforcement.py",),
    ),
    Defect(
        "what-is-mounted-in-a-guarded-router-checks-nothing",
        "routing/router_checks.py",
        "    scope[_HANDED] = (router, around)\n",
        "",
        "An endpoint in a mounted app runs without the agents around where a middleware of that app rewrites the path.",
        ("tests/endpoints/test_rewriting_within.py",),
    ),
    Defect(
        "a-call-within-a-request-counts-as-asked",
        "routing/router_checks.py",
        '    if scope is not None and STATE_KEY not in (scope.get("state") or ()):\n',
        "    if False:\n",
        "What a handler calls in this process runs with the agents of the handler's own request.",
        ("tests/endpoints/test_rewriting_within.py",),
    ),
    Defect(
        "marks-that-come-later-are-missed",
        "routing/resolver.py",
        " or self._generation != marks.generation:\n",
        ":\n",
        "A router that gets its policy while the app serves keeps the agents of before.",
        ("tests/endpoints/test_policies.py",),
    ),
)
