"""File descriptors: how many a process may have open."""

import resource


def raise_limit() -> int:
    """Raise this process' limit, and so that of its children, to what it may be.

    :returns: that limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
