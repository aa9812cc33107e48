"""Starlette's own test suite, with every app behind the middleware.

An agent that allows everything must change nothing that an app, a server or a client can see. Starlette's tests look at
ASGI apps from all of these sides. So they are run as they are and with the apps wrapped, and each has to come out the
same::

    python -m tests.transparency --mode stream buffer --place outermost user
"""

TESTCLIENT = "tests/test_testclient.py::test_"
BASE = "tests/middleware/test_base.py::test_"
GZIP = "tests/middleware/test_gzip.py::test_"
BODY_LIMIT = "tests/middleware/test_body_limit.py::test_"

# An agent can't judge a file that the server sends by its path, so apps are not told that the server could.
_NO_PATHSEND = {f"{BASE}asgi_pathsend_events*": "pathsend is hidden"}

_HELD_BACK = {
    f"{TESTCLIENT}streaming_response_is_available_before_first_chunk*": "the head waits for the end of the body",
    f"{TESTCLIENT}streaming_response_applies_backpressure*": "the app is not slowed down while its body is collected",
    f"{TESTCLIENT}streaming_response_skips_empty_and_head_bodies*": "the app is not slowed down either",
    f"{TESTCLIENT}streaming_response_copies_mutable_chunks*": "what was collected leaves in one piece",
    f"{TESTCLIENT}closing_unfinished_response_cancels_application*": "a body that has no end never leaves",
}

_HELD_BACK_INSIDE = _HELD_BACK | {
    f"{BASE}background_task_runs_after_response_sent_with_middleware*": "what was collected leaves in one piece",
    f"{BASE}do_not_block_on_background_tasks*": "what was collected leaves in one piece",
}

_READ_AHEAD = {
    f"{BODY_LIMIT}route_*": "the body is read before a route is there to raise the limit",
    f"{BODY_LIMIT}mount_can_override_application_limit*": "the body is read before a mount is there to raise the limit",
    f"{BODY_LIMIT}received_bytes_are_counted_*": "the limit is hit where nothing turns its exception into a 413",
}

# What a guardrail can't judge is not asked for, and what GET would say of a body is not known.
_RESHAPED = {
    f"{GZIP}gzip_*": "the app is not asked for compressed bodies",
    "tests/middleware/test_cors.py::test_cors_vary_origin_with_gzip*": "the app is not asked for compressed bodies",
    "tests/test_responses.py::test_file_response_*": "the app is not asked for ranges, and HEAD has no content-length",
    "tests/test_staticfiles.py::test_staticfiles_*head*": "HEAD has no content-length",
}

_HELD_UNTIL_KNOWN = {
    f"{TESTCLIENT}{name}*": "an answer without a type is held until its first piece shows what it is"
    for name in (
        "streaming_response_is_available_before_first_chunk",
        "streaming_response_skips_empty_and_head_bodies",
        "invalid_trailer_sequence",
    )
}

_COLLECTED_INSIDE = {pattern: reason for pattern, reason in _HELD_BACK_INSIDE.items() if pattern.startswith(BASE)}

EXPECTED_FAILURES: dict[tuple[str, str], dict[str, str]] = {
    ("stream", "outermost"): {},
    ("stream", "user"): _NO_PATHSEND,
    ("text", "outermost"): _RESHAPED | _HELD_UNTIL_KNOWN,
    ("text", "user"): _NO_PATHSEND | _RESHAPED | _HELD_UNTIL_KNOWN | _COLLECTED_INSIDE | _READ_AHEAD,
    ("buffer", "outermost"): _HELD_BACK,
    ("buffer", "user"): _NO_PATHSEND | _HELD_BACK_INSIDE | _READ_AHEAD,
}
"""By body mode and place, the tests that may fail when wrapped, as ``fnmatch`` patterns of their ids, and why.

It is for what a mode is bound to change: no body can be held back until it is judged without a test of its timing
noticing. Whatever fails for another reason is a bug.
"""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "outermost": (),
    "user": (f"{GZIP}gzip_ignored_for_pathsend_responses",),
}
"""By place, what the ids of tests begin with that would never end when wrapped.

With pathsend hidden, ``FileResponse`` waits beside its work for the client to go. This one's ``receive`` neither waits
nor says so, and the event loop never gets to the work.
"""
