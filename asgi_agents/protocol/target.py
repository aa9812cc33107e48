"""What a request is for: the path that an app goes by, and what agents are shown of the target that the client sent.

A server takes a target apart: it decodes the path, and gives the raw one beside it. Apps go by the decoded path, agents
see the raw one. So the two must not lead to different places.
"""

from typing import Final
from urllib.parse import quote, unquote_to_bytes

#: What a request is refused for where its target is not shown to agents.
NO_PATH: Final = "a target that is no path"
# All that is written as it is in a raw path that is shown.
_ASCII: Final = "".join(map(chr, range(128)))


class NoPathError(ValueError):
    """The target is none that leads to a path (RFC 9112, section 3.2.1), and the app may find one in it."""


def is_path(path: str, root_path: str) -> bool:
    """Whether an app is asked for a path, or for the ``*`` of ``OPTIONS``.

    Some servers hand other targets on: ``GET admin``, ``GET http://host/admin``. No route of agents matches these, and
    there are frameworks that take a path out of them.

    :param root_path: where the app is. Below one, what is left of the path may be empty.
    """
    return path[:1] == "/" or path == "*" or (not path and root_path != "")


def shown_path(path: str, raw_path: bytes | None, root_path: str) -> str:
    """The path as agents see it: as the client has sent it where that leads to ``path``, else ``path``, quoted.

    It is ``path`` where the server gives no raw one, and where a middleware around this one has put another in its
    place. It is ASCII: bytes that the client has sent as they are, which some servers take, are quoted. Agents that
    decode it as a text would come to other characters than the app.

    :raises NoPathError: for a raw path without the slash that it begins with below ``root_path``: ``GET %2fadmin``.
    """
    if raw_path is None:
        return quote(path, errors="surrogatepass")
    # A client of older versions of httpx puts the query there as well.
    raw_path = raw_path.partition(b"?")[0]
    raw = raw_path.decode("latin-1")
    if raw == path and raw.isascii():
        return raw
    decoded = unquote_to_bytes(raw_path)
    # Servers and frameworks differ in whether the root path is a part of the path, and of the raw one.
    if not any(
        text in (path, root_path + path) or root_path + text == path
        for text in (decoded.decode(errors=errors) for errors in ("replace", "surrogateescape"))
    ):
        return quote(path, errors="surrogatepass")
    if raw and raw[0] != "/":
        raise NoPathError(NO_PATH)
    root = len(root_path)
    below = path.startswith(f"{root_path}/") and raw.startswith(root_path)
    if below and raw[root : root + 1] not in ("/", ""):
        raise NoPathError(NO_PATH)
    return raw if raw.isascii() else quote(raw_path, safe=_ASCII)
