"""The curves as a picture: what each command costs among 10 to 100,000 grants."""

import math
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from tests.bench.measuring import Results

__all__ = ["CURVES", "draw"]


class Curve(NamedTuple):
    """A panel of the picture."""

    title: str
    axis: str
    peer: str


CURVES: Final = {
    "rotation": Curve("One forced rotation", "ms of processor time", "a bare POST and two durable files"),
    "run-once --force": Curve("run-once --force, all grants", "seconds", "as many bare POSTs, 64 at once"),
    "run-once": Curve("run-once, nothing due", "ms of processor time", "python -c pass"),
    "status": Curve("status", "seconds of processor time", "python -c pass"),
    "start-up": Curve("run, until it is ready", "seconds", "reading each file once"),
    "memory": Curve("run, memory", "MiB", "a bare interpreter"),
}
"""Of the points that ``Run.point`` notes, those that are drawn."""


def draw(results: Results, path: Path) -> None:
    """Draw the curves that were measured, each in a panel with its counterpart."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    drawn = {name: curve for name, curve in CURVES.items() if name in results.curves}
    columns = min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(5.6 * columns, 4 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(drawn) :]:
        panel.set_visible(False)
    for panel, (name, curve) in zip(panels.flat, drawn.items(), strict=False):
        points = sorted(results.curves[name].items())
        sizes = [size for size, _ in points]
        panel.plot(sizes, [median(each.refresher) for _, each in points], "o-", color="tab:blue", label="refresher")
        panel.plot(sizes, [median(each.peer) for _, each in points], "s--", color="tab:gray", label=curve.peer)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(0.7, 1.4 * max(map(max, results.curves.values())))
        values = [value for _, each in points for value in (*each.refresher, *each.peer)]
        # With room for the legend above the lines.
        panel.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(8 * max(values))))
        panel.set_title(curve.title)
        panel.tick_params(labelsize=9)
        panel.set_xlabel("grants")
        panel.set_ylabel(curve.axis)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
        panel.grid(visible=True, which="major", alpha=0.4)
        panel.legend(loc="upper left")
    load = " to ".join(f"{each:.1f}" for each in results.load)
    figure.suptitle(f"refresher by number of grants ({results.machine}, {results.date}, load {load})")
    figure.savefig(path, dpi=110)
    plt.close(figure)
