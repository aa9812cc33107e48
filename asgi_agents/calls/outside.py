"""Events on their way to agents in other processes, where connections go by their outside names."""

from msgspec.structs import replace

from ..observability.correlation import live_ids, outside_name
from ..protocol import ConfigureEvent, Event, RequestHeadersEvent


def event_outside(event: Event) -> Event:
    """``event`` as it leaves the process: of the connection's :func:`outside_name`; the same object where it has that.

    Everything else stays as it is. The client's own id is still where it was: among the headers of a request's head.
    """
    if isinstance(event, ConfigureEvent):
        return event
    correlation_id = event.correlation_id
    # Most are made here: seen at once, without a call.
    if live_ids.get(correlation_id) or not correlation_id:
        return event
    name = outside_name(correlation_id)
    if isinstance(event, RequestHeadersEvent):
        return replace(event, metadata=replace(event.metadata, correlation_id=name))
    return replace(event, correlation_id=name)
