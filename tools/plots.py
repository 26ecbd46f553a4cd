"""Plots of measured time against tokens, as SVG, the same bytes for the same evidence."""

import io

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot, ticker  # the backend is chosen first

STYLE = {
    "svg.hashsalt": "rocm-patches",  # ids that do not change from run to run
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7280",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
# Drawn from the back to the front; colours that differ in lightness too.
LINES = {
    "floor_us": {"label": "memory floor", "color": "#9ca3af", "linestyle": "--", "linewidth": 1.2},
    "empty_us": {"label": "empty launch", "color": "#9ca3af", "linestyle": ":", "linewidth": 1.2},
    "eager_us": {"label": "eager sequence", "color": "#d97706", "marker": "s", "linewidth": 1.2},
    "upstream_us": {"label": "upstream", "color": "#2563eb", "marker": "o", "linewidth": 1.2},
    "ours_us": {"label": "ours", "color": "#b91c1c", "marker": "D", "linewidth": 2.2},
}


def time_against_tokens(rows: list[dict], title: str) -> str:
    """SVG of one line of sizes: ``tokens`` and the columns of LINES, nulls left out."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(4.4, 3.3), layout="constrained")
        for column, style in LINES.items():
            points = [(r["tokens"], r[column]) for r in rows if r.get(column) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), markersize=3.5, **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds a call")
        axes.set_title(title)
        measured = [row.get(name) for row in rows for name in LINES if name != "floor_us"]
        axes.set_ylim(bottom=min(us for us in measured if us is not None) / 3)
        axes.xaxis.set_major_locator(ticker.LogLocator(4, numticks=12))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(color="#e5e7eb", linewidth=0.6)
        handles, labels = axes.get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": 3, "columnspacing": 1.2}
        figure.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, **place)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return target.getvalue()
