"""What agents are shown of a target: where the app goes, however the client has written it."""

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_agents.protocol.target import NoPathError, is_path, shown_path


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path", "shown"),
    [
        ("/a b", b"/a%20b", "", "/a%20b"),
        ("/a", b"/a?x", "", "/a"),  # as older versions of httpx have it
        ("/new", b"/old", "", "/new"),  # rewritten by a middleware around this one
        ("/n\xe9w", b"/old", "", "/n%C3%A9w"),
        ("/a", None, "", "/a"),
        ("/a", b"/mnt/a", "/mnt", "/mnt/a"),  # as some frameworks mount
        ("/mnt/a", b"/a", "/mnt", "/a"),
        ("/mnt/a", b"/mnt/a", "/mnt", "/mnt/a"),
        ("", b"/mnt", "/mnt", "/mnt"),
        ("/mnt", b"/mnt", "/mnt", "/mnt"),
        ("/%61", b"/%61", "", "/%61"),  # a server that decodes nothing
        ("/\ufffd", b"/%ff", "", "/%ff"),
        (f"/{chr(0xDCFF)}", b"/%ff", "", "/%ff"),  # surrogateescape
        ("/\xe9", b"/\xe9", "", "/%C3%A9"),
        ("/\xe9", b"/\xc3\xa9", "", "/%C3%A9"),
        ("/\xe9%", b"/\xc3\xa9%25", "", "/%C3%A9%25"),
        ("*", b"*", "", "*"),
    ],
)
def test_agents_are_shown_what_was_sent_unless_the_app_goes_elsewhere(
    path: str, raw_path: bytes | None, root_path: str, shown: str
) -> None:
    assert is_path(path, root_path)
    assert shown_path(path, raw_path, root_path) == shown


pieces = st.sampled_from(
    ["/", "%2f", "%2F", "admin", "%61", "a", "..", "%", "?", ";", "\\", "\xe9", "%c3%a9", "%ff"],
)
raws = st.lists(pieces, max_size=6).map(lambda found: "".join(found).encode("latin-1"))


@given(sent=raws, given_path=st.one_of(st.none(), raws), root=st.sampled_from(["", "/a", "/admin"]))
@example(sent=b"%2fadmin", given_path=None, root="")
@example(sent=b"/a%2fadmin", given_path=None, root="/a")
def test_what_agents_are_shown_decodes_to_where_the_app_goes(sent: bytes, given_path: bytes | None, root: str) -> None:
    """Whatever the client sends, and whatever a middleware has made of it."""
    raw_path = sent.partition(b"?")[0]
    path = unquote((raw_path if given_path is None else given_path).decode("utf-8", "replace"))
    if not is_path(path, root):
        return
    try:
        shown = shown_path(path, raw_path, root)
    except NoPathError:
        assert raw_path[:1] != b"/" or raw_path.startswith(root.encode() + b"%")
        return
    assert shown.isascii(), "an agent that decodes a text comes to what the bytes say"
    decoded = unquote(shown)
    assert decoded in (path, f"{root}{path}") or root + decoded == path or shown == quote(path)
    assert shown == "" or shown[0] == "/" or shown == "*"
