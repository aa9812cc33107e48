"""What a part of the suite has found: tables to read, figures to judge, curves to draw. No I/O."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .ratios import spread


class Table(msgspec.Struct, frozen=True):
    """``rows`` begin with their title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Curve(msgspec.Struct, frozen=True):
    """How something grows.

    :param lines: by their name, for each of ``x`` what every round came to.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    lines: dict[str, tuple[tuple[float, ...], ...]]

    @property
    def x_names(self) -> tuple[str, ...]:
        return tuple(map(_size if self.x_label == "bytes" else "{:,g}".format, self.x))


class Part(msgspec.Struct, frozen=True):
    """:param figures: ratios by their name, every round's.
    :param left_out: what could not be measured here, and why.
    """

    name: str
    tables: tuple[Table, ...]
    figures: dict[str, tuple[float, ...]]
    curves: tuple[Curve, ...] = ()
    left_out: tuple[str, ...] = ()


def _size(count: float) -> str:
    for unit, size in (("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count:g} B"


def ratio(rounds: Sequence[float], digits: int = 2) -> tuple[str, str]:
    """Two cells: the median, and the middle half."""
    middle, low, high = spread(rounds)
    return f"{middle:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def markdown(table: Table) -> str:
    lines = [
        f"| {' | '.join(('', *table.columns))} |",
        f"| --- | {' | '.join('--:' for _ in table.columns)} |",
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]
    return f"{table.title}\n\n" + "\n".join(lines)


def text(part: Part) -> str:
    """All of its tables."""
    return "\n\n".join((*map(markdown, part.tables), *(f"Left out: {reason}." for reason in part.left_out)))


def json(parts: Iterable[Part], about: Mapping[str, object]) -> bytes:
    """Every round's numbers, with ``about`` beside them."""
    return msgspec.json.format(msgspec.json.encode({**about, "parts": tuple(parts)}), indent=2) + b"\n"
