"""Docstrings as Markdown: a griffe extension for mkdocstrings.

The docstrings of the package are written for ``help()``, with the roles and the simple tables of reStructuredText.
"""

import re
from pathlib import Path
from typing import Any, Final

import griffe

_ROLE: Final = re.compile(r":(?:class|meth|func|attr|data|mod|exc):`~?(?P<name>[\w.]+)`")
_FIELD: Final = re.compile(r":(?:param|ivar|raises|return)\b.*")
_BORDER: Final = re.compile(r"^=+(?: +=+)*$")
_EXPORTS: Final = re.compile(r"__all__ = \[(?P<names>.*?)\]", re.DOTALL)


def public_names() -> frozenset[str]:
    """What the package exports. Read and not imported, as everything here."""
    exported = _EXPORTS.search((Path(__file__).parents[1] / "asgi_agents" / "__init__.py").read_text())
    assert exported is not None
    return frozenset(re.findall(r'"([A-Za-z]\w*)"', exported["names"]))


_PUBLIC: Final = public_names()


def markdown_of(docstring: str) -> str:
    """A docstring with roles as links or code, literal blocks without their colons, and tables as blocks."""
    lines: list[str] = []
    within = False
    source = docstring.splitlines()
    for number, line in enumerate(source):
        if _BORDER.match(line.strip()):
            ends = within and not any(_BORDER.match(later.strip()) for later in source[number + 1 :])
            if not within:
                lines.append("```text")
            lines.append(line)
            if ends:
                lines.append("```")
            within = not ends
        elif within:
            lines.append(line)
        else:
            text = _ROLE.sub(_linked, line)
            lines.append("" if text.strip() == "::" else re.sub(r"::$", ":", text))
    return "\n".join(lines)


def prose_first(docstring: str) -> str:
    """A docstring whose paragraphs all stand before its fields. A parser takes one behind them for part of the last."""
    prose: list[str] = []
    fields: list[str] = []
    within = False
    for line in docstring.splitlines():
        if _FIELD.match(line):
            within = True
        elif line.strip() and not line.startswith(" "):
            if within:
                prose.append("")
            within = False
        (fields if within else prose).append(line)
    return "\n".join([*prose, "", *fields])


def _linked(role: re.Match[str]) -> str:
    name = role["name"].rpartition(".")[2]
    return f"[`{name}`][asgi_agents.{name}]" if name in _PUBLIC else f"`{name}`"


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each object once it is known."""
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(prose_first(obj.docstring.value))
