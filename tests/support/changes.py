"""Changes of the agents of a manager, as those who use the package make them."""

from asgi_agents import AgentConfig, AgentManager
from asgi_agents.manager import registry_of


async def take_a_file(manager: AgentManager, *configs: AgentConfig) -> None:
    """As a file is taken anew that had the agent ``a`` before, and has these now."""
    await registry_of(manager).change(
        configs,
        owned=["a"],
        kept=(),
        fatal=lambda agent_id, error: True,
        routes=lambda find: lambda: None,
        drain_timeout=30.0,
    )
