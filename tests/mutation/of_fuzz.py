"""The defects that ``tests/fuzz`` plants by replacing functions, as edits of the source.

There they show that the targets notice. Here other tests have to.
"""

from typing import Final

from .defect import Defect

FUZZ: Final = (
    Defect(
        "fuzz-permits-never-given-back",
        "concurrency/limiter.py",
        '"""Give a permit back. The first waiting task gets it."""\n',
        '"""Give a permit back. The first waiting task gets it."""\n        return\n',
        "The second chunk of a response is never sent.",
        ("tests/test_limiter.py",),
    ),
    Defect(
        "fuzz-bodies-not-judged",
        "exchange/stage.py",
        "        data, last, whole = self._asked\n",
        "        return self._release(self._asked[0])\n        data, last, whole = self._asked\n",
        "A body that an agent blocks passes.",
        ("tests/exchange/test_body.py",),
    ),
    Defect(
        "fuzz-bytes-kept-back-lost",
        "exchange/stage.py",
        'return b"".join((self._withheld.take(), self._buffer.take(), data))',
        "self._withheld.take(), self._buffer.take()\n        return data",
        "The part of a body that an agent wanted more for is missing.",
        ("tests/exchange/test_body.py",),
    ),
    Defect(
        "fuzz-response-heads-not-judged",
        "exchange/response.py",
        "decision, provisional = await judge_head(self._state, event, body_agents=body_agents)",
        "decision, provisional = AgentDecision(), {}",
        "A response that an agent blocks by its head reaches the client.",
        ("tests/exchange/test_response.py",),
    ),
    Defect(
        "fuzz-request-heads-not-judged",
        "exchange/base.py",
        "if self._resolved_route.head_agents:\n                    # The event",
        "if False:\n                    # The event",
        "A request that an agent blocks by its head reaches the app.",
        ("tests/exchange/test_websocket.py",),
    ),
    Defect(
        "fuzz-nothing-fails-open",
        "decision.py",
        "return self.enforced and self.failure is not None and self.fail_closed",
        "return self.enforced and self.failure is not None",
        "A fail-open agent that is down stops all requests.",
        ("tests/test_decision.py",),
    ),
    Defect(
        "fuzz-nothing-fails-closed",
        "decision.py",
        "return self.enforced and self.failure is not None and self.fail_closed",
        "return False",
        "Requests pass a fail-closed agent that is down.",
        ("tests/test_decision.py",),
    ),
    Defect(
        "fuzz-shadow-agents-decide",
        "decision.py",
        "return self.enforced and self.response is not None and not self.response.is_allow",
        "return self.response is not None and not self.response.is_allow",
        "A shadow agent blocks requests.",
        ("tests/test_decision.py",),
    ),
    Defect(
        "fuzz-any-header-may-be-set",
        "protocol/validation.py",
        "    # No message has the values: they may be secrets, and messages end up in logs.\n",
        "    return\n",
        "An agent's answer can set content-length, and smuggle a request.",
        ("tests/protocol/test_validation.py",),
    ),
    Defect(
        "fuzz-content-length-left-as-it-was",
        "exchange/response.py",
        "            headers = without_body_claims(headers, length, decoded=body.decoded)\n",
        "            pass\n",
        "A response that an agent has changed has the length of the old one.",
        ("tests/exchange/test_body.py",),
    ),
    Defect(
        "fuzz-provisional-denials-forgotten",
        "exchange/head.py",
        "from .state import ExchangeState\n",
        "from .state import ExchangeState\n\n\n"
        "def merge(verdicts: Sequence[Verdict], *, final: bool = True) -> AgentDecision:\n"
        "    return AgentDecision()\n",
        "A request that an agent has denied goes on where the agent is not shown a body.",
        ("tests/exchange/test_head.py",),
    ),
    Defect(
        "fuzz-chunks-overtake-each-other",
        "exchange/inbound.py",
        '"""The app gets ``message`` next."""\n        self._ready.append(message)',
        '"""The app gets ``message`` next."""\n'
        '        self._ready.insert(0, {**message, "body": message.get("body", b"")[::-1]})',
        "The app gets the chunks of an upload in another order.",
        ("tests/exchange/test_inbound.py",),
    ),
    Defect(
        "fuzz-broken-off-response-ends-well",
        "exchange/response.py",
        "        match self._phase:\n",
        "        return\n        match self._phase:\n",
        "A response that an agent stops in the middle looks complete.",
        ("tests/exchange/test_response.py",),
    ),
    Defect(
        "fuzz-messages-of-the-client-not-judged",
        "exchange/websocket.py",
        '"""Show a message to the agents, and pass it on, drop it, or close the session, as they decide."""\n',
        '"""Show a message to the agents, and pass it on, drop it, or close the session, as they decide."""\n'
        "        if client_to_server:\n"
        "            self._inbound.deliver(message)\n"
        "            return\n",
        "A websocket message that an agent blocks reaches the app.",
        ("tests/exchange/test_websocket.py",),
    ),
    Defect(
        "fuzz-messages-of-the-app-not-judged",
        "exchange/websocket.py",
        '"""Show a message to the agents, and pass it on, drop it, or close the session, as they decide."""\n',
        '"""Show a message to the agents, and pass it on, drop it, or close the session, as they decide."""\n'
        "        if not client_to_server:\n"
        "            await self._raw_send(message)\n"
        "            return\n",
        "A websocket message that an agent drops reaches the client.",
        ("tests/exchange/test_websocket.py",),
    ),
    Defect(
        "fuzz-websocket-closed-twice",
        "exchange/websocket.py",
        "with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):\n",
        "with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):\n"
        "                await self._raw_send(message)\n",
        "The server raises when an agent closes a websocket.",
        ("tests/exchange/test_websocket.py",),
    ),
    Defect(
        "fuzz-websocket-not-closed",
        "exchange/websocket.py",
        "with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):\n",
        "with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(OSError):\n                return\n",
        "A websocket that an agent closes stays open for the client.",
        ("tests/exchange/test_websocket.py",),
    ),
    Defect(
        "fuzz-incomplete-frames-forgotten",
        "protocol/stream/framing.py",
        "        return self._cut(data)\n",
        '        length = int.from_bytes(data[:_LENGTH_BYTES], "big")\n'
        "        whole = 0 < length <= len(data) - _LENGTH_BYTES\n"
        "        return iter([data[_LENGTH_BYTES : _LENGTH_BYTES + length]] if whole else [])\n",
        "An answer that arrives in two pieces is lost, and its call times out.",
        ("tests/protocol/test_frames.py",),
    ),
    Defect(
        "fuzz-framing-headers-may-be-set",
        "protocol/validation.py",
        "return name in _UNTOUCHABLE or name.startswith(_UNTOUCHABLE_PREFIX)",
        "return False",
        "An agent's answer can set transfer-encoding, and smuggle a request.",
        ("tests/protocol/test_validation.py",),
    ),
    Defect(
        "fuzz-answers-lose-their-operations",
        "protocol/codec.py",
        "return tuple(_op_from_wire(field, index, op) for index, op in enumerate(wire))",
        "return ()",
        "Header changes of an agent elsewhere are not made.",
        ("tests/protocol/test_codec.py",),
    ),
    Defect(
        "fuzz-recorded-answers-are-not-looked-at",
        "recording/reading.py",
        "        if encoded:\n            decoded = self._within",
        "        if not encoded:\n            decoded = self._within",
        "A recording with a line that was damaged is replayed, and ends in the middle with a traceback.",
        ("tests/recording/test_reading.py",),
    ),
    Defect(
        "fuzz-recorded-calls-in-the-order-of-the-file",
        "recording/reading.py",
        "heapq.heappush(waiting, (exchange.about.n, exchange.line, size, exchange))",
        "heapq.heappush(waiting, (exchange.line, exchange.about.n, size, exchange))",
        "A replay asks about the end of a request before its beginning.",
        ("tests/recording/test_reading.py",),
    ),
    Defect(
        "fuzz-the-apps-router-is-never-asked",
        "routing/resolver.py",
        "        if match is None:\n",
        "        if True:\n",
        "A POST is judged by the agents of the route for GET.",
        ("tests/test_resolver.py",),
    ),
    Defect(
        "fuzz-patterns-match-more-than-starlettes",
        "routing/routes.py",
        "return self.takes(method) and self.regex.match(path) is not None",
        'wide = re.compile(self.regex.pattern.removesuffix("$") + r"\\n?\\Z", re.DOTALL)\n'
        "        return self.takes(method) and wide.match(path) is not None",
        "A path with a line break in it gets the agents of another route.",
        ("tests/test_routing.py",),
    ),
    Defect(
        "fuzz-prefixes-of-mounts-forgotten",
        "routing/matching.py",
        "return match_within(*chosen, scope, prefix, around, enter)",
        'return match_within(*chosen, scope, "", around, enter)',
        "What is in a mount gets the agents of the route of the same spelling outside.",
        ("tests/test_resolver.py",),
    ),
    Defect(
        "fuzz-root-paths-of-mounts-forgotten",
        "routing/matching.py",
        "        scope.update(child_scope)\n",
        '        scope.update({key: value for key, value in child_scope.items() if key != "root_path"})\n',
        "A handler in a mount runs without the agents of its route.",
        ("tests/test_resolver.py",),
    ),
    Defect(
        "fuzz-methods-forgotten",
        "routing/finder.py",
        'full_key = (scope["type"], str(scope.get("method", "")), scope.get("root_path") or "", scope["path"])',
        'full_key = (scope.get("root_path") or "", scope["path"])',
        "Who asks for a path first decides which agents judge it, whatever the method of the next request.",
        ("tests/test_resolver.py",),
    ),
    Defect(
        "fuzz-shifted-handlers-forgotten",
        "routing/resolver.py",
        "        if match is None:\n",
        "        if match not in {route.path for route in candidates}:\n",
        "A handler below a root path of its own runs without the agents of its route.",
        ("tests/test_resolver.py",),
    ),
)
