"""The results as one page of tables and figures: README.md in a folder of benchmarks/results/."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from artifacts.pictures import BLUE, VERMILION
from benchmarks.measure import Row

HEAD = """# What a run costs

`make bench` writes this page. All figures are medians. Wall seconds depend on what else the machine does, CPU seconds
depend less on it, and ratios least, because the ways of a table take turns. `make bench ARGS="--help"` lists the parts
and what they measure.
"""


def write(folder: Path) -> None:
    """Write the page of all results in the folder, whenever they were measured."""
    sections = [HEAD]
    for part, section in SECTIONS.items():
        file = folder / f"{part}.json"
        if file.exists():
            content = json.loads(file.read_text())
            sections += [section([Row.model_validate(row) for row in content["rows"]], folder), measured(content)]
    (folder / "README.md").write_text("\n".join(sections))


def measured(content: dict[str, Any]) -> str:
    """When and where a part was measured."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("tensorflow", "keras", "prefect", "mlflow"))
    n = len(content["rows"][0]["costs"])
    return (
        f"<sub>{content['at']} UTC, {n} {'time' if n == 1 else 'times'}; {machine['processor']}, bfloat16: "
        f"{machine['bfloat16']}, {machine['memory']}; {versions}; load before: {content['load_before']:.1f}</sub>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def training(rows: list[Row], folder: Path) -> str:
    """Wall and CPU seconds of the fits, as a share of the seed's."""
    seed = rows[0]
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1))
    bars(figure.subplots(), rows, {"wall": "fit", "CPU": "fit_cpu"})
    save(figure, folder / "training.png")
    return "\n".join(
        [
            "## Training: the fit alone\n",
            table(
                ["fit", "wall s", "CPU s", "wall, times shorter", "CPU, times less", "wrong of 10,000"],
                [
                    [
                        row.name,
                        f"{row.median('fit'):.1f}",
                        f"{row.median('fit_cpu'):.1f}",
                        f"{seed.median('fit') / row.median('fit'):.1f}",
                        f"{seed.median('fit_cpu') / row.median('fit_cpu'):.1f}",
                        ", ".join(f"{cost.told['n_wrong']:.0f}" for cost in row.costs),
                    ]
                    for row in rows
                ],
            ),
            "![Seconds of the fits](training.png)\n",
        ]
    )


def presets(rows: list[Row], folder: Path) -> str:
    """Error against CPU seconds, so that a user can choose a preset."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for row in rows:
        wrong = [cost.told["n_wrong"] / 100 for cost in row.costs]
        axes.errorbar(
            row.median("fit_cpu"),
            statistics.mean(wrong),
            [[statistics.mean(wrong) - min(wrong)], [max(wrong) - statistics.mean(wrong)]],
            fmt="o",
            color=BLUE,
            capsize=3,
        )
        axes.annotate(
            row.name, (row.median("fit_cpu"), statistics.mean(wrong)), xytext=(7, 5), textcoords="offset points"
        )
    axes.set(xscale="log", yscale="log", xlabel="CPU seconds of the fit", ylabel="test images wrong, %")
    axes.margins(0.15)
    for axis, places in ((axes.xaxis, (1, 2, 3, 5)), (axes.yaxis, range(1, 10))):
        axis.set_major_locator(LogLocator(subs=places))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, folder / "presets.png")
    return "\n".join(
        [
            "## Accuracy for the money\n",
            table(
                ["preset", "test accuracy, mean", "wrong of 10,000 by seed", "CPU s", "wall s"],
                [
                    [
                        row.name,
                        f"{1 - statistics.mean(cost.told['n_wrong'] for cost in row.costs) / 10_000:.4f}",
                        ", ".join(f"{cost.told['n_wrong']:.0f}" for cost in row.costs),
                        f"{row.median('fit_cpu'):.0f}",
                        f"{row.median('fit'):.0f}",
                    ]
                    for row in rows
                ],
            ),
            "![Error against CPU seconds](presets.png)\n",
        ]
    )


def cold(rows: list[Row], folder: Path) -> str:
    """A first run without its fit, as a share of the plain scripts' time."""
    del folder
    return "\n".join(
        [
            "## A first run, next to the same work in plain Python\n",
            table(
                [
                    "way",
                    "wall s",
                    "of it the fit",
                    "outside of the fit",
                    "CPU s",
                    "outside: `make train` is … times it",
                ],
                [
                    [
                        row.name,
                        *(f"{row.median(what):.1f}" for what in ("wall", "fit", "outside", "cpu")),
                        f"{rows[0].median('outside') / row.median('outside'):.2f}",
                    ]
                    for row in rows
                ],
            ),
        ]
    )


def cached(rows: list[Row], folder: Path) -> str:
    """A run that reuses every step, as a share of an empty flow in the same setting."""
    del folder
    lines = [
        [
            row.name,
            *(f"{row.median(what):.{digits}f}" for what, digits in (("wall", 1), ("cpu", 1), ("peak_mb", 0))),
            f"{run.median('wall') / row.median('wall'):.2f}",
        ]
        for run, *others in (rows[:3], rows[3:])
        for row in (run, *others)
    ]
    return "\n".join(
        [
            "## A run that reuses every step, next to an empty flow\n",
            table(["way", "wall s", "CPU s", "peak MB", "wall: `make train` is … times it"], lines),
        ]
    )


def setup(rows: list[Row], folder: Path) -> str:
    """From a fresh clone to the first validation, by stage."""
    del folder
    (row,) = rows
    stages = [*row.costs[0].told]
    return "\n".join(
        [
            "## `make train` in a fresh clone, with empty package caches\n",
            table(
                ["until this is there", "wall s"],
                [
                    *([stage, f"{row.median(stage):.1f}"] for stage in stages),
                    ["in all", f"{row.median('wall'):.1f}"],
                ],
            ),
        ]
    )


def growth(rows: list[Row], folder: Path) -> str:
    """CPU seconds by step, and peak memory, by amount of data."""
    times = [int(row.name.split()[0]) for row in rows]
    steps = [*rows[0].costs[0].told]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for step in steps:
        left.plot(times, [row.median(step) for row in rows], marker="o", label=step)
    left.plot(times, [rows[0].median("evaluate") * k for k in times], "k:", label="linear")
    left.set(xscale="log", yscale="log", xlabel="times MNIST", ylabel="CPU seconds")
    left.set_xticks(times, [f"{k}" for k in times], minor=False)
    left.set_xticks([], minor=True)
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    right.plot(times, [row.median("peak_mb") / 1000 for row in rows], marker="o", color=BLUE)
    right.set(xlabel="times MNIST", ylabel="peak of memory, GB", ylim=(0, None))
    save(figure, folder / "growth.png")
    return "\n".join(
        [
            "## How the cost grows with the data\n",
            "CPU seconds. In brackets: the factor to a growth in proportion to MNIST.\n",
            table(
                ["data", *steps, "peak MB"],
                [
                    [
                        row.name,
                        *(
                            f"{row.median(step):.1f} (× {row.median(step) / rows[0].median(step) / k:.2f})"
                            for step in steps
                        ),
                        f"{row.median('peak_mb'):.0f}",
                    ]
                    for row, k in zip(rows, times, strict=True)
                ],
            ),
            "![CPU seconds and memory by times MNIST](growth.png)\n",
        ]
    )


def many(rows: list[Row], folder: Path) -> str:
    """How much longer things take in a store with a thousand runs."""
    del folder
    lines = []
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        what = few.name.rpartition(", ")[0]
        times = few.median("wall"), many.median("wall")
        lines.append([what, *(f"{seconds:.2f}" for seconds in times), f"{times[1] / times[0]:.2f}"])
    counts = [row.name.rpartition(", ")[2] for row in rows[:2]]
    return "\n".join(
        [
            "## A thousand runs in the store\n",
            "Wall seconds. A page counts until it is drawn in a browser.\n",
            table(["", *counts, "ratio"], lines),
        ]
    )


def bars(axes: Axes, rows: list[Row], what: dict[str, str]) -> None:
    """Draw a group of bars per row."""
    for n, ((label, number), color) in enumerate(zip(what.items(), (BLUE, VERMILION), strict=False)):
        positions = [-place + 0.2 - 0.4 * n for place in range(len(rows))]
        drawn = axes.barh(positions, [row.median(number) for row in rows], 0.38, color=color, label=f"{label} seconds")
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks([-place for place in range(len(rows))], [row.name for row in rows])
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, dpi=130, bbox_inches="tight")


SECTIONS: dict[str, Callable[[list[Row], Path], str]] = {
    "training": training,
    "presets": presets,
    "cold": cold,
    "cached": cached,
    "setup": setup,
    "growth": growth,
    "many": many,
}
