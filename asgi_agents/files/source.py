"""The text of a file, and the plain data in it."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ..errors import ConfigurationError
from .mistakes import Place, refusal

#: Nobody writes so long a configuration by hand.
MAX_FILE_BYTES: Final = 1024 * 1024
_SUFFIXES: Final = (".toml", ".yaml", ".yml", ".json")
# A key of TOML of a hundred parts: "a.a.a". The time that Python takes for one grows with the cube of their number, and
# a text that looks like one is as unlikely as the key.
_DEEP_KEY: Final = re.compile(
    r"""(?<![\w-]) (?: (?: [\w-]++ | "(?:[^"\\\n]|\\.){0,80}+" | '[^'\n]{0,80}+' ) [ \t]*+ \. [ \t]*+ ){100}""",
    re.ASCII | re.VERBOSE,
)


class FileContent(Struct, frozen=True):
    """What was read.

    :ivar digest: of the bytes; the same for the same content.
    :ivar lines: where values stand, as far as the parser tells.
    :ivar unclear: what is written, by place, where others read a text in place of a truth value.
    """

    digest: bytes
    data: Any
    lines: Mapping[Place, int]
    unclear: Mapping[Place, str]


def read_bytes(path: Path) -> bytes:
    """The content of the file. Raises :class:`ConfigurationError` where it can't be read."""
    try:
        with open(path, "rb", opener=at_once) as file:
            # A pipe or a device may never end, and has nothing more to say when it is read again.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise refusal(str(path), "no regular file, expected a file that can be read")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        # A relative path begins where the process runs, which whoever has written it may not think of.
        where = f" in the working directory, {os.getcwd()}" if _is_missing(exc) and not path.is_absolute() else ""
        raise refusal(
            str(path), f"{exc.strerror or type(exc).__name__}, expected a file that can be read{where}"
        ) from exc
    except ConfigurationError:
        raise
    except ValueError:
        raise refusal(repr(str(path)), "no path of a file, expected a file that can be read") from None
    if len(content) > MAX_FILE_BYTES:
        raise refusal(str(path), f"longer than expected: at most {MAX_FILE_BYTES} bytes")
    return content


def _is_missing(exc: OSError) -> bool:
    return isinstance(exc, FileNotFoundError | NotADirectoryError)


def at_once(path: str, flags: int) -> int:
    """An opener that does not wait: at a named pipe, for one, until somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def digest_of(content: bytes) -> bytes:
    """The same for the same content."""
    return sha256(content).digest()


def parse(path: Path, content: bytes) -> FileContent:
    """The plain data in ``content``, by the suffix of ``path``. Raises :class:`ConfigurationError`."""
    suffix = check_suffix(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content[: exc.start].count(b"\n") + 1
        raise refusal(str(path), "not in UTF-8, expected text in UTF-8", line) from None
    if not text.strip():
        raise refusal(str(path), "the file is empty, expected agents, routes or guardrails in it")
    lines: Mapping[Place, int] = {}
    unclear: Mapping[Place, str] = {}
    try:
        if suffix == ".toml":
            deep = _DEEP_KEY.search(text)
            if deep is not None:
                line = text.count("\n", 0, deep.start()) + 1
                raise refusal(str(path), "a key of more than a hundred parts, expected no more", line)
            data: Any = tomllib.loads(text)
        elif suffix == ".json":
            data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        else:
            from .yaml_source import parse_yaml

            read = parse_yaml(str(path), text)
            data, lines, unclear = read.data, read.lines, read.unclear
    except json.JSONDecodeError as exc:
        raise refusal(str(path), f"no JSON: {exc.msg} (column {exc.colno})", exc.lineno) from None
    except tomllib.TOMLDecodeError as exc:
        raise refusal(str(path), f"no TOML: {exc}") from None
    except _DuplicateKeyError as exc:
        raise refusal(str(path), f"the key {exc.args[0]!r} is there twice in one object, expected each once") from None
    except RecursionError:
        raise refusal(str(path), "nested too deeply") from None
    except ConfigurationError:
        raise
    except ValueError as exc:
        # As of an integer with too many digits.
        raise refusal(str(path), f"not readable: {exc}") from None
    if not isinstance(data, dict):
        raise refusal(str(path), f"a {type(data).__name__}, expected a table with keys such as agents")
    return FileContent(digest_of(content), data, lines, unclear)


def check_suffix(path: Path) -> str:
    """The suffix, which says what is in the file. Raises :class:`ConfigurationError` where it does not."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise refusal(str(path), f"{path.name!r}, expected a name that ends in {', '.join(_SUFFIXES)}")
    return suffix


class _DuplicateKeyError(ValueError):
    """An object of JSON has a key twice, of which readers take one or the other."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
