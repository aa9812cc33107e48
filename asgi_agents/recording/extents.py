"""Where values end in a text that may be cut or broken: strings, brackets, elements of XML, indented lines. No I/O.

Each passes a part of the text once. Who asks goes on behind what was found, so that a text takes as long as it is long.
"""

import re
from typing import Final

from ..observability.brackets import closes
from ..observability.pieces import matches
from ..observability.secret_names import is_secret_member

QUOTE: Final = re.compile(r"""(?P<slashes>\\*+)(?P<quote>["'])""")
_REST_OF_TAG: Final = re.compile(r"(?P<attributes>[^<>]*+)(?P<end>>)?+")
_TAG: Final = re.compile(
    r"(?P<hiding><!\[CDATA\[|<!--|<\?)|<(?P<closing>/)?+(?:[\w.-]{1,100}+:)?+(?P<name>[\w.-]{1,100}+)(?=[\s/>])"
)
_END_OF_HIDING: Final = {"<![CDATA[": "]]>", "<!--": "-->", "<?": "?>"}
_SHORT_CONTENT: Final = re.compile(r"(?P<text>[^<]{0,100}+)(?:</(?:[\w.-]{1,100}+:)?+(?P<name>[\w.-]{1,100}+)|\Z)")
_AN_ELEMENT: Final = re.compile(r"\s*+<[A-Za-z]")
_LINE: Final = re.compile(r"(?:\r\n|[\r\n])(?P<indent>[ \t]*+)(?P<rest>[^\r\n]*+)")


def end_of_string(text: str, mark: re.Match[str], limit: int | None = None) -> int:
    """Behind the quotation mark that ends a string, or at the end of the text.

    :param mark: of :data:`QUOTE`, where the string begins.
    :param limit: nothing is looked for behind it.
    """
    level = len(mark["slashes"])
    limit = len(text) if limit is None else min(limit, len(text))
    end = mark.end()
    while (at := text.find(mark["quote"], end, limit)) >= 0:
        before = text[end:at]
        end = at + 1
        if closes(len(before) - len(before.rstrip("\\")), level):
            return end
    return limit


def content_of_tag(text: str, at: int) -> int | None:
    """Where the content of an element begins whose name ends at ``at``; None where it has none.

    Where its tag does not end, or an attribute has a ``<``, all behind the name may be content.
    """
    rest = _REST_OF_TAG.match(text, at)
    if rest is None or not rest["end"]:
        return at
    return None if rest["attributes"].endswith("/") else rest.end()


def end_of_element(text: str, at: int, name: str) -> int:
    """Where the tag begins that closes an element, or the end of the text.

    :param at: where its content begins, which may have elements of the same name, comments and CDATA in it.
    """
    name, depth, skipped = name.lower(), 1, at
    for found in matches(_TAG, text, at):
        if found.start() < skipped:
            continue
        if found["hiding"]:
            skipped = text.find(_END_OF_HIDING[found["hiding"]], found.end())
            if skipped < 0:
                break
        elif found["name"].lower() == name:
            if not found["closing"]:
                depth += content_of_tag(text, found.end()) is not None
                continue
            depth -= 1
            if not depth:
                return found.start()
    return len(text)


def has_count(text: str, at: int, element: str, name: str) -> bool:
    """Whether the content of an element is a number of tokens, or says how they are made up, and so no credential."""
    if is_secret_member(name, 0):
        return False
    short = _SHORT_CONTENT.match(text, at)
    if short is not None and (short["name"] or element).lower() == element.lower():
        return not is_secret_member(name, short["text"].strip())
    return _AN_ELEMENT.match(text, at) is not None and not is_secret_member(name, {})


def end_of_block(text: str, at: int, column: int, *, items: bool) -> int:
    """Where the lines end that belong to one of YAML, or of a header: those that are indented by more than ``column``.

    :param at: the end of the line.
    :param items: items of a list belong to it that are indented by as much.
    """
    end = at
    while (line := _LINE.match(text, at)) is not None:
        at = line.end()
        if not line["rest"]:
            continue
        width = len(line["indent"])
        if width < column or (width == column and not (items and f"{line['rest']} ".startswith("- "))):
            break
        end = at
    return end
