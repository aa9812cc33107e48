"""Draws curves, as SVG files that are the same for the same numbers. Needs the ``benchmark`` extra."""

from collections.abc import Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Final

from .ratios import spread
from .report import Curve

_COLOURS: Final = ("#0969da", "#bc4c00")
_STYLE: Final = {
    "svg.hashsalt": "asgi-agents",
    # As text, which is small; whoever shows it has a font.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    # The page around it may be dark.
    "savefig.facecolor": "white",
}


def available() -> bool:
    return find_spec("matplotlib") is not None


def write(curves: Iterable[Curve], directory: Path) -> list[Path]:
    """One file for each, by its name. Returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for curve in curves:
        path = directory / f"{curve.name}.svg"
        path.write_bytes(svg(curve))
        paths.append(path)
    return paths


def svg(curve: Curve) -> bytes:
    """Medians, the middle half of the rounds around them."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), colour in zip(curve.lines.items(), _COLOURS, strict=False):
            middle, low, high = zip(*map(spread, points), strict=True)
            axes.plot(curve.x, middle, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
            axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(curve.x, labels=curve.x_names)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(curve.y_label.replace(", ", ",\n", 1))
        axes.set_title(curve.title, fontsize="medium")
        axes.grid(color="#d0d7de", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curve.lines) > 1:
            axes.legend(frameon=False)
        drawn = BytesIO()
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
