"""Whether a socket holds something that nobody has read yet."""

import select
from typing import Any


def is_readable(socket: Any) -> bool:
    """Whether the peer has sent something that is still in the system's buffer, or has closed the connection.

    ``socket`` is anything with ``fileno()``. True where there is none: nothing is known of it then.
    """
    number = -1 if socket is None else socket.fileno()
    if number < 0:
        return True
    if not hasattr(select, "poll"):  # pragma: no cover - Windows
        return bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
