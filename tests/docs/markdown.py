"""Code blocks, headings and links of a Markdown page. No I/O."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>.*)$")
_COMMENT: Final = re.compile(r"^ *<!-- (?P<key>[a-z -]+?)(?:: (?P<value>.+?))? -->$")
_HEADING: Final = re.compile(r"^#{1,6} (?P<text>.+?) *$")
_CODE_SPAN: Final = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_INLINE_LINK: Final = re.compile(r"\]\((?P<target>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
_DEFINITION: Final = re.compile(r"^ {0,3}\[(?P<label>[^\]]+)\]: +(?P<target>\S+)")
_REFERENCE: Final = re.compile(r"\[(?P<text>[^\[\]]+)\]\[(?P<label>[^\[\]]*)\]")


class Block(NamedTuple):
    """A fenced code block.

    ``line`` is the number of its first line of code, ``title`` the name of the file that it is, where it is one.
    ``marks`` are the comments directly before it: ``<!-- key: value -->``.
    """

    language: str
    title: str | None
    code: str
    line: int
    marks: Mapping[str, str]


def blocks_of(text: str) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    marks: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            comment = _COMMENT.match(line)
            if comment is not None:
                marks[comment["key"]] = comment["value"] or ""
            elif line.strip():
                marks = {}
            continue
        indent = len(fence["indent"])
        code: list[str] = []
        for _, inner in lines:
            if inner.strip() == fence["fence"]:
                break
            code.append(inner[indent:] if not inner[:indent].strip() else inner)
        else:
            raise ValueError(f"line {number}: the code block has no end")
        info = fence["info"].strip()
        title = re.search(r'title="([^"]+)"', info)
        yield Block(info.split(" ")[0], title[1] if title else None, "\n".join([*code, ""]), number + 1, marks)
        marks = {}


def prose_of(text: str) -> str:
    """A page without its code blocks and code spans; it has as many lines as before."""
    kept: list[str] = []
    fence = ""
    for line in text.split("\n"):
        opening = _FENCE.match(line)
        if fence:
            fence = "" if line.strip() == fence else fence
            kept.append("")
        elif opening is not None:
            fence = opening["fence"]
            kept.append("")
        else:
            kept.append(line)
    return _CODE_SPAN.sub("``", "\n".join(kept))


def headings_of(text: str) -> Sequence[str]:
    """The texts of a page's headings, with their code spans."""
    bare = prose_of(text).split("\n")
    return [
        heading["text"]
        for line, prose in zip(text.split("\n"), bare, strict=True)
        if prose and (heading := _HEADING.match(line)) is not None
    ]


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site (``toc`` with ``pymdownx.slugs``) make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links_of(text: str) -> Iterator[str]:
    """The targets of a page's links and images; of a reference that is not defined, its label in brackets."""
    prose = prose_of(text)
    definitions = {
        match["label"].lower(): match["target"] for line in prose.splitlines() if (match := _DEFINITION.match(line))
    }
    yield from definitions.values()
    for match in _INLINE_LINK.finditer(prose):
        yield match["target"]
    for match in _REFERENCE.finditer(prose):
        label = match["label"] or match["text"]
        if label.lower() not in definitions and "``" not in label:
            yield f"[{label}]"
