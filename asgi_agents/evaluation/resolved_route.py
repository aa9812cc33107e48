"""What a route resolves to: its agents, which of them receive which events, and what follows from that."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from ..guard import Guard
from ..guardrails import Guardrail
from ..protocol import EventType
from .route_agent import AgentReference, RouteAgent
from .stages import order_of
from .text_judges import RouteJudges

# All that can follow the head of an http request.
_AFTER_THE_HEAD = frozenset(
    {
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
)

# Those in whose answers an agent can set request headers.
_REQUESTS = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})


class RouteListing(Struct, frozen=True):
    """A route as it was configured, before it is resolved.

    ``path`` is None for what no route matches, ``methods`` None for all. ``agents`` is None for all agents there are.
    ``guardrails`` are those that hold on the route.
    """

    path: str | None
    methods: tuple[str, ...] | None
    agents: tuple[AgentReference, ...] | None
    guardrails: tuple[Guardrail, ...] = ()


class ResolvedRoute:
    """The agents of a route, in route order, resolved once for many connections.

    :ivar begun: how many connections there were on it, ``ended`` how many of these have ended. Who serves one counts
        both, which takes no longer than to count those that hold it.
    :ivar held: how many others hold it now, that are no connections.
    """

    __slots__ = (
        "_by_event",
        "agents",
        "asks_for_plain_bodies",
        "asks_for_whole_bodies",
        "begun",
        "cleans_headers",
        "concerns_http",
        "concerns_websockets",
        "ended",
        "frame_steps",
        "guarded",
        "guardrails",
        "guards",
        "head_agents",
        "head_order",
        "headers_in_process_only",
        "heads_may_wait",
        "hears",
        "held",
        "inspects_responses",
        "judges",
        "keeping_requests",
        "lacks_guardrails",
        "plain_heads_only",
        "planned",
        "policy",
        "refusal",
        "replaces",
        "reshapes_requests",
        "retired",
        "route",
        "sets",
        "unpacks_bodies",
    )

    def __init__(
        self,
        agents: Sequence[RouteAgent],
        route: str | None = None,
        judges: RouteJudges | None = None,
        guardrails: tuple[Guardrail, ...] = (),
        *,
        policy: object = None,
        refusal: str | None = None,
        lacks_guardrails: bool = False,
    ) -> None:
        self.agents = tuple(agents)
        #: The endpoint's own policy, from which this was resolved; None where the routes have decided.
        self.policy = policy
        #: Why no handler may run, because not all that the policy asks for can be done; None where all is well.
        self.refusal = refusal
        #: Whether any guardrail of the middleware is not in force here, because the route has guardrails of its own.
        self.lacks_guardrails = lacks_guardrails
        #: What handlers may ask for by name: those of the route first.
        self.guardrails = guardrails
        #: Those who judge text; None where nobody does.
        self.judges = judges
        #: Whether anybody is asked about anything.
        self.guarded = bool(self.agents) or judges is not None or refusal is not None
        #: All agents, each once: those of guardrails too.
        self.guards: Sequence[Guard] = tuple(
            dict.fromkeys(agent.guard for agent in (*self.agents, *(judges.agents if judges is not None else ())))
        )
        #: The pattern of the route, or None.
        self.route = route
        self.begun = 0
        self.ended = 0
        self.held = 0
        #: Whether something has changed, so that new connections get another.
        self.retired = False
        #: Those that keep something under a connection's correlation id until :meth:`forget`.
        self.keeping_requests = tuple(guard for guard in self.guards if guard.client.keeps_requests)
        self._by_event = {
            event_type: tuple(agent for agent in self.agents if event_type in agent.guard.hears)
            for event_type in EventType
        }

        #: Those that receive the heads of requests.
        self.head_agents = self._by_event[EventType.REQUEST_HEADERS]
        #: The steps in which they receive a websocket message (:func:`chain_steps`).
        self.frame_steps = chain_steps(self._by_event[EventType.WEBSOCKET_FRAME])
        #: Whether no head leaves the process.
        self.headers_in_process_only = all(agent.guard.local for agent in self.head_agents)
        #: The events that any agent receives.
        self.hears = frozenset(event_type for event_type, agents in self._by_event.items() if agents)
        #: Whether anything of a request, or of a websocket session, concerns any agent.
        self.concerns_http = not self.hears.isdisjoint({EventType.REQUEST_HEADERS, *_AFTER_THE_HEAD})
        self.concerns_websockets = self.concerns_http or EventType.WEBSOCKET_FRAME in self.hears
        #: Whether any agent receives what the app answers.
        self.inspects_responses = not self.hears.isdisjoint({EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK})
        # Those whose answers on response bodies are applied, so that the app must send none that they can't judge.
        inspecting = [agent.guard.config for agent in self._by_event[EventType.RESPONSE_BODY_CHUNK]]
        inspecting = [config for config in inspecting if config.enforce]
        #: Whether the app must not be asked for parts of bodies, for encoded ones, or for codings unknown here.
        self.asks_for_whole_bodies = any(not c.ranges and c.response_content_types is None for c in inspecting)
        self.asks_for_plain_bodies = any(c.body_access == "write" and not c.decode for c in inspecting)
        self.unpacks_bodies = any(c.decode for c in inspecting)
        #: Any of these.
        self.reshapes_requests = self.asks_for_whole_bodies or self.asks_for_plain_bodies or self.unpacks_bodies
        #: Which of :attr:`head_agents` are asked after which; None: all of them in parallel.
        self.head_order = order_of(
            {agent.guard.config.id: tuple(agent.guard.config.after) for agent in self.agents},
            [agent.guard.config.id for agent in self.head_agents],
        )
        #: Whether the answer to a head may be late.
        self.heads_may_wait = any(
            EventType.REQUEST_HEADERS not in agent.guard.client.non_suspending_hooks for agent in self.head_agents
        )
        #: Whether heads are all that any agent receives, and all of them receive a head at the same time.
        self.plain_heads_only = self.head_order is None and self.hears.isdisjoint(_AFTER_THE_HEAD)
        #: Whether the short way may be taken (:mod:`asgi_agents.exchange.plan`).
        self.planned = bool(self.head_agents) and self.plain_heads_only and judges is None
        #: The headers that are the agents' alone to set, so that they are taken out of what the client sends.
        setting = [
            agent.guard.config
            for agent in self.agents
            if agent.guard.config.enforce and not agent.guard.hears.isdisjoint(_REQUESTS)
        ]
        self.sets: frozenset[str] = frozenset().union(*(config.sets for config in setting))
        #: Those that agents see of the client, and the app only as agents set them.
        self.replaces: frozenset[str] = frozenset().union(*(config.replaces for config in setting))
        #: Whether the client's headers may have to be changed before agents have answered.
        self.cleans_headers = bool(self.sets or self.replaces)
        self.planned = self.planned and not self.cleans_headers and refusal is None

    @property
    def connections(self) -> int:
        """How many hold it: an agent that is replaced or removed is closed only once none is left that may call it.

        Where other threads serve, it may be too many, and is never too few.
        """
        # What has ended is read first: a connection that begins and ends meanwhile does not hide one that is open.
        return self.held - self.ended + self.begun

    def agents_for(self, event_type: EventType) -> tuple[RouteAgent, ...]:
        """The agents that receive such events, in route order."""
        return self._by_event[event_type]


def begun_on(resolved_routes: Iterable[ResolvedRoute]) -> int:
    """How many connections there were on those of them that have agents."""
    return sum(resolved_route.begun for resolved_route in resolved_routes if resolved_route.guarded)


def chain_steps(agents: Sequence[RouteAgent]) -> Sequence[Sequence[RouteAgent]]:
    """Cut a chain into its steps: consecutive agents that only read share one, each agent that may write has its own.

    The agents of a step receive an event in parallel, those of the next one afterwards, if it was allowed.
    """
    steps: list[list[RouteAgent]] = []
    for agent in agents:
        reads = agent.guard.config.body_access == "read"
        if reads and steps and steps[-1][-1].guard.config.body_access == "read":
            steps[-1].append(agent)
        else:
            steps.append([agent])
    return steps
