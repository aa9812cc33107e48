"""What agents cost, as ratios, each of two things that were measured in the same run and took turns.

``python -m tests.benchmarks`` prints Markdown: what is added to a request when nothing else runs
(:mod:`.parts.direct`), what is left of the requests per second that uvicorn serves (:mod:`.parts.server`), beside Envoy
(:mod:`.parts.envoy`), how all that grows (:mod:`.parts.growth`), and what guardrails cost a stream, beside LiteLLM's
proxy (:mod:`.parts.guardrails`); at the end, what is aimed at (:mod:`.targets`) and whether it is met.

Through servers, each variant is an app in a server process of its own, remote agents are further processes, and one
more makes the requests. All of a part's servers are started at once and loaded one at a time, round after round, so
that whatever else the machine does meets every row alike. A new row is a :class:`~.variant.Variant` in
:mod:`.variants`.
"""
