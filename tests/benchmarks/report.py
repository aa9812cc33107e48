"""Measurements -> numbers per row -> Markdown and JSON. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from .load import Measurement
from .variant import Variant


@dataclass(frozen=True, slots=True)
class Row:
    """A variant's rounds.

    ``shares`` are of the reference variant's requests per second in the same round. CPU is in cores.
    """

    name: str
    title: str
    requests_per_second: tuple[float, ...]
    shares: tuple[float, ...]
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]
    server_cpu: tuple[float | None, ...]
    peers_cpu: tuple[float | None, ...]
    load_cpu: tuple[float | None, ...]


def rows(
    variants: Iterable[Variant], measurements: Mapping[str, Sequence[Measurement]], reference: str
) -> tuple[Row, ...]:
    """One for each variant, in their order; ``reference`` is the name of the one that the others are measured by."""
    whole = measurements[reference]
    return tuple(_row(variant, measurements[variant.name], whole) for variant in variants)


def _row(variant: Variant, rounds: Sequence[Measurement], whole: Sequence[Measurement]) -> Row:
    return Row(
        name=variant.name,
        title=variant.title,
        requests_per_second=tuple(one.rate for one in rounds),
        shares=tuple(one.rate / other.rate for one, other in zip(rounds, whole, strict=True)),
        p50_ms=tuple(one.p50 * 1000 for one in rounds),
        p99_ms=tuple(one.p99 * 1000 for one in rounds),
        server_cpu=tuple(one.cpu[0] for one in rounds),
        peers_cpu=tuple(_sum(one.cpu[1:-1]) for one in rounds),
        load_cpu=tuple(one.cpu[-1] for one in rounds),
    )


def _sum(cores: Sequence[float | None]) -> float | None:
    known = [one for one in cores if one is not None]
    return sum(known) if known else None


def markdown(rows: Iterable[Row]) -> str:
    """A table of medians, with the least and the greatest share; CPU in per cent of one core."""
    lines = [
        "| | share | min-max | requests/s | p50 ms | p99 ms | CPU: server | peers | load |",
        "| --- | --: | :-: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        cells = (
            row.title,
            f"{median(row.shares):.2f}",
            f"{min(row.shares):.2f}-{max(row.shares):.2f}",
            f"{median(row.requests_per_second):.0f}",
            f"{median(row.p50_ms):.2f}",
            f"{median(row.p99_ms):.2f}",
            *(_per_cent(cores) for cores in (row.server_cpu, row.peers_cpu, row.load_cpu)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _per_cent(cores: Iterable[float | None]) -> str:
    known = [one for one in cores if one is not None]
    return f"{median(known):.0%}" if known else ""


def json(rows: Iterable[Row], about: Mapping[str, object]) -> bytes:
    """Every round's numbers, with ``about`` beside them."""
    return msgspec.json.format(msgspec.json.encode({**about, "rows": tuple(rows)}), indent=2) + b"\n"
