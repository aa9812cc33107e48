"""Defects in configuration from files: what is taken, what is refused, and what stays as it was."""

from typing import Final

from .defect import Defect

FILES: Final = (
    Defect(
        "defaults-win-over-variables",
        "files/variables.py",
        "        if default is not None and not value:\n",
        "        if default is not None:\n",
        "What the environment says is ignored where the file has a default.",
        ("tests/files/test_variables.py",),
    ),
    Defect(
        "values-of-variables-are-in-messages",
        "files/load.py",
        "    mistakes.hide = variables.hide\n",
        "",
        "A credential from the environment is in the message about a mistake.",
        ("tests/files/test_variables.py",),
    ),
    Defect(
        "files-may-import-anything",
        "files/objects.py",
        "    if module_name not in imports:\n",
        "    if not module_name:\n",
        "Whoever may write the file has any module imported.",
        ("tests/files/test_mistakes_of_files.py",),
    ),
    Defect(
        "unknown-keys-are-ignored",
        "files/checking.py",
        '                self._mistakes.add((*place, key), f"no such key; {nearest(key, fields)}")\n',
        "",
        "A key that is misspelt has no effect, and nobody says so.",
        ("tests/files/test_mistakes_of_files.py",),
    ),
    Defect(
        "keys-may-be-there-twice",
        "files/source.py",
        "    if len(found) < len(pairs):\n",
        "    if len(found) > len(pairs):\n",
        "Of two settings of the same name in JSON, one is ignored without a word.",
        ("tests/files/test_mistakes_of_files.py",),
    ),
    Defect(
        "files-of-any-length-are-read",
        "files/source.py",
        "    if len(content) > MAX_FILE_BYTES:\n",
        "    if len(content) > 2 * MAX_FILE_BYTES:\n",
        "A file that is too long is cut off, and what is left is taken for all of it.",
        ("tests/files/test_mistakes_of_files.py",),
    ),
    Defect(
        "agents-that-have-changed-stay",
        "files/load.py",
        "            if agent_id in self._entries and self._entries[agent_id] == entry:\n",
        "            if agent_id in self._entries:\n",
        "After a reload, an agent still has its old address.",
        ("tests/files/test_reload.py",),
    ),
    Defect(
        "settings-that-take-a-restart-are-accepted",
        "files/reload.py",
        "            _check_settings(self._source.path, loaded.settings, before.settings)\n",
        "",
        "A reload says that it was taken, and a part of it was not.",
        ("tests/files/test_reload.py",),
    ),
    Defect(
        "half-written-files-are-taken",
        "files/watch.py",
        "        if not same:\n            return False\n",
        "",
        "A file is taken while it is still being written.",
        ("tests/files/test_watch.py",),
    ),
    Defect(
        "the-handler-of-before-is-not-called",
        "files/hangup.py",
        "        if callable(self._previous):\n            self._previous(number, frame)\n",
        "",
        "A server that did something at SIGHUP does it no longer.",
        ("tests/files/test_hangup.py",),
    ),
)
