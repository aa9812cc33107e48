"""The verdict on a run, as text and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .samples import MEASURES, Measure, Sample
from .trend import SIGNIFICANCE, Trend, trend

#: The share of the samples that is left out: what is made once and for all is made then.
WARM_UP = 0.2
_PER = 100_000


def trends(samples: Sequence[Sample]) -> dict[Measure, Trend]:
    """How each measure behaves over the samples after the warm-up, per 100,000 requests."""
    later = samples[int(len(samples) * WARM_UP) :]
    x = [sample.requests / _PER for sample in later]
    return {measure: trend(x, [measure.of(sample) for sample in later]) for measure in MEASURES}


def leaks(found: Mapping[Measure, Trend]) -> list[Measure]:
    """Those that grow for certain, and by as much as is relevant."""
    return [measure for measure, each in found.items() if each.grows(measure.relevant)]


def table(samples: Sequence[Sample], found: Mapping[Measure, Trend]) -> str:
    """A row for each measure, with what it was at the end of the warm-up and at the end."""
    begin = samples[int(len(samples) * WARM_UP)]
    lines = [
        "| | after warm-up | at the end | slope per 100,000 requests | 95 % interval | p | r | a leak from | verdict |",
        "| --- | --: | --: | --: | :-: | --: | --: | --: | --- |",
    ]
    for measure, each in found.items():
        cells = (
            f"{measure.name}{', ' + measure.unit if measure.unit else ''}",
            f"{measure.of(begin):.4g}",
            f"{measure.of(samples[-1]):.4g}",
            f"{each.slope:.3g}",
            f"{each.low:.3g} to {each.high:.3g}",
            f"{each.p:.2f}" if each.p >= SIGNIFICANCE else f"{each.p:.1g}",
            f"{each.correlation:.2f}",
            f"{measure.relevant:g}",
            _verdict(measure, each),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(measure: Measure, each: Trend) -> str:
    if each.grows(measure.relevant):
        return "**grows**"
    if each.p >= SIGNIFICANCE:
        return "no slope"
    return "shrinks" if each.slope < 0 else "grows, below what is relevant"


def plot(samples: Sequence[Sample], found: Mapping[Measure, Trend], path: Path) -> None:
    """All measures over the requests, as an SVG that is the same for the same samples. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    begin = samples[int(len(samples) * WARM_UP)].requests
    x = [sample.requests for sample in samples]
    with pyplot.rc_context({"svg.hashsalt": "soak", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = pyplot.subplots(len(found), 1, sharex=True, figsize=(8, 1.25 * len(found)), facecolor="white")
        for axis, (measure, each) in zip(axes, found.items(), strict=True):
            values = [measure.of(sample) for sample in samples]
            axis.plot(x, values, ".", markersize=3, color="#1f5fa8")
            later = [at for at in x if at >= begin]
            middle = sorted(value - each.slope * at / _PER for at, value in zip(x, values, strict=True) if at >= begin)
            level = middle[len(middle) // 2]
            axis.plot(later, [level + each.slope * at / _PER for at in later], color="#c0392b", linewidth=1)
            axis.axvspan(0, begin, color="#eeeeee")
            axis.set_ylim(0, max(values) * 1.3 or 1)
            title = f"{measure.name}{' (' + measure.unit + ')' if measure.unit else ''}"
            axis.set_title(f"{title}: {each.slope:.2g} per 100,000 requests, p = {each.p:.2f}", loc="left")
        axes[-1].set_xlabel("requests; grey is the warm-up, red the Theil-Sen slope")
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
