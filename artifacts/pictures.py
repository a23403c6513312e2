"""The pictures of a model's evaluation, and its CSV: pure functions from numbers and arrays to the bytes of a file.

To add a picture, write a function here and an entry in `PICTURES`. The picture is then drawn, kept in the run's folder,
and shown in the section of the report that the entry names.

Equal inputs give equal bytes. The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind
readers can tell apart. Each picture has its own light background, so that it looks the same on a white and on a dark
page. It has twice as many pixels as it is shown with. Matplotlib and Pillow are imported when something is drawn.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from artifacts.dataset import Split
from artifacts.records.evaluation import Case, Evaluation, Robustness, Slice
from artifacts.records.model import Epoch, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#EB9A45"
CARD, INK, MUTED, FAINT = "#FBFBFA", "#24292F", "#5D646D", "#D9DCDF"
DOTS_PER_INCH = 160  # an inch is shown 80 pixels wide
GRID = 4
N_BINS = 15  # bins of confidence, as in the calibration error


def learning_curves(history: Sequence[Epoch]) -> bytes:
    """Draw loss, accuracy, val_loss and val_accuracy by epoch, as PNG."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(9.5, 3.8))
        for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _draw_curves(axes, history, metric)
        return _png(figure)


def _draw_curves(axes: Axes, history: Sequence[Epoch], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch.epoch for epoch in history]
    marker_size = 6 if len(epochs) <= 12 else 3
    for name, color, line, marker in ((metric, BLUE, "-", "o"), (f"val_{metric}", VERMILION, "--", "s")):
        values = [getattr(epoch, name) for epoch in history]
        axes.plot(
            epochs, values, line, color=color, marker=marker, markersize=marker_size, label=f"{name}  {values[-1]:.4f}"
        )
    axes.set_title(metric.capitalize())
    axes.set_xlabel("epoch")
    axes.set_xlim(max(0, epochs[0] - 0.5), epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.grid(visible=True)
    axes.legend(title="after the last epoch", alignment="left")


def confusion_matrix(matrix: Sequence[Sequence[int]]) -> bytes:
    """Draw a confusion matrix, as PNG. Only the errors are coloured, because the diagonal would outshine them.

    Args:
        matrix: Counts, with a row per label and a column per prediction.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    classes = np.arange(len(counts))
    errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    # Light enough for dark text, also if a page inverts the picture for a dark theme.
    shades = LinearSegmentedColormap.from_list("errors", [CARD, ORANGE])

    with _style():
        figure = Figure(figsize=(6.6, 6.7))
        axes = figure.subplots()
        axes.imshow(errors, cmap=shades, vmin=0, vmax=max(errors.max(), 1))
        for (label, prediction), count in np.ndenumerate(counts):
            if label == prediction:
                axes.text(prediction, label, f"{count}", color=MUTED, ha="center", va="center")
            elif count > 0:
                axes.text(prediction, label, f"{count}", size=12, weight="bold", ha="center", va="center")
        axes.set_xlabel("prediction")
        axes.set_ylabel("label")
        axes.set_xticks(classes)
        axes.set_yticks(classes)
        axes.set_xticks(classes[:-1] + 0.5, minor=True)
        axes.set_yticks(classes[:-1] + 0.5, minor=True)
        axes.grid(visible=True, which="minor")
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(True)
        axes.set_title(f"{errors.sum():,} of {counts.sum():,} predicted wrong: the coloured cells")
        return _png(figure)


def wrong_predictions(images: npt.NDArray[np.float32], cases: Sequence[Case]) -> bytes:
    """Draw the first 16 wrong predictions in a 4×4 grid, each with its probable cause, as PNG.

    Args:
        images: The test images, float32 of shape ``(n, height, width, 1)``, in 0–1.
        cases: The wrong predictions, the most instructive first.
    """
    from matplotlib.figure import Figure

    shown = cases[: GRID**2]
    with _style():
        rows = math.ceil(len(shown) / GRID)
        figure = Figure(figsize=(7.6, 0.6 + 2.4 * rows))
        # Without images below it, the layout would put the title at the edge.
        figure.suptitle(_describe(len(shown), len(cases)), x=0.03, y=None if rows else 0.65, ha="left")
        for position, case in enumerate(shown, start=1):
            axes = figure.add_subplot(rows, GRID, position)
            guess = case.guesses[0]
            title = f"Label {case.label}, Predict {guess.label}"
            _draw_digit(
                axes, images[case.index], title, f"{case.cause}\n{guess.probability:.1%} sure · no. {case.index}"
            )
        return _png(figure)


def robustness(slices: Sequence[Slice], champion: Sequence[Slice]) -> bytes:
    """Draw the share of wrong predictions by slice, with 95 % confidence intervals, as PNG.

    Args:
        slices: The model's figures.
        champion: The figures of the champion that it is compared with. Empty if there is none.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rival = {(one.kind, one.name): one for one in champion}
    with _style():
        figure = Figure(figsize=(7.6, 1.1 + 0.27 * len(slices)))
        axes = figure.subplots()
        heights, kinds = [], [one.kind for one in slices]
        for n, kind in enumerate(kinds):
            heights.append(n + 0.8 * len(dict.fromkeys(kinds[: n + 1])))
            if n == 0 or kind != kinds[n - 1]:
                heading = "all test images, changed" if kind == "change" else kind
                axes.text(
                    -0.01,
                    heights[-1] - 0.85,
                    heading,
                    color=INK,
                    weight="bold",
                    ha="right",
                    va="center",
                    transform=axes.get_yaxis_transform(),
                )
        for one, height in zip(slices, heights, strict=True):
            other = rival.get((one.kind, one.name))
            if other:
                _draw_interval(axes, other, height + 0.22, VERMILION, "s", "champion")
            _draw_interval(axes, one, height - (0.12 if other else 0), BLUE, "o", "this model")
        axes.set_yticks(heights, [one.name for one in slices])
        axes.set_ylim(heights[-1] + 0.8, heights[0] - 1.4)
        axes.tick_params(axis="y", length=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
        axes.set_xlabel("predicted wrong, with 95 % confidence interval (logarithmic)")
        axes.grid(visible=True, axis="x")
        handles, names = axes.get_legend_handles_labels()
        unique = dict(zip(names, handles, strict=True))
        if rival:
            axes.legend(unique.values(), unique.keys(), loc="upper right")
        return _png(figure)


def _draw_interval(axes: Axes, one: Slice, height: float, color: str, marker: str, name: str) -> None:
    # A slice without an error can only show the upper end of its interval on a logarithmic axis.
    floor = 100 / (one.n + 1) / 2
    error = max(100 * (1 - one.accuracy), floor)
    axes.plot([max(100 * (1 - one.high), floor), 100 * (1 - one.low)], [height, height], color=color, linewidth=1.4)
    axes.plot([error], [height], marker, color=color, markersize=4.5, label=name)


def confidence(
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[np.floating],
    uncalibrated: npt.NDArray[np.floating],
    n_for_a_person: int,
) -> bytes:
    """Draw the reliability diagram before and after calibration, and what asking a person gains, as PNG.

    Args:
        labels: Labels of the test images, of shape ``(n,)``.
        probabilities: The model's probabilities, of shape ``(n, 10)``.
        uncalibrated: Its probabilities before temperature scaling, of the same shape.
        n_for_a_person: How many images to hand to a person so that 99.9 % of the rest are right.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(9.5, 4.0))
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
        for values, color, marker, name in (
            (uncalibrated, VERMILION, "s", "before temperature scaling"),
            (probabilities, BLUE, "o", "the model"),
        ):
            sure, accuracy, low, high = _reliability(values.max(axis=1), values.argmax(axis=1) == labels)
            left.vlines(sure, low, high, color=color, linewidth=1, alpha=0.6)
            left.plot(sure, accuracy, marker, color=color, markersize=5, label=name)
        left.set_title("Is it right as often as it is sure?")
        left.set_xlabel("confidence (mean of a bin)")
        left.set_ylabel("accuracy, with 95 % interval")
        left.set_xlim(0, 1.02)
        left.set_ylim(0, 1.02)
        left.grid(visible=True)
        left.legend(loc="lower right")
        _draw_handing_over(right, probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, n_for_a_person)
        return _png(figure)


def _reliability(sure: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    from scipy.stats import binomtest

    rows = []
    for k in range(N_BINS):
        inside = np.minimum((sure * N_BINS).astype(int), N_BINS - 1) == k
        if inside.any():
            interval = binomtest(int(right[inside].sum()), int(inside.sum())).proportion_ci(0.95, method="wilson")
            rows.append((sure[inside].mean(), right[inside].mean(), interval.low, interval.high))
    return np.array(rows, np.float64).T


def _draw_handing_over(
    axes: Axes, sure: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], n_for_a_person: int
) -> None:
    n = len(right)
    surest_first = right[np.argsort(-sure, kind="stable")]
    errors = 100 * (1 - np.cumsum(surest_first) / np.arange(1, n + 1))
    handed_over = 100 * (1 - np.arange(1, n + 1) / n)
    axes.plot(handed_over, errors, color=BLUE)
    axes.axhline(0.1, color=MUTED, linewidth=1, linestyle=":")
    axes.plot([100 * n_for_a_person / n], [0.1], "o", color=VERMILION, markersize=6)
    axes.annotate(
        f"99.9 % right: hand over {n_for_a_person:,} of {n:,}",
        (100 * n_for_a_person / n, 0.1),
        xytext=(10, 10),
        textcoords="offset points",
    )
    axes.set_title("What asking a person gains")
    axes.set_xlabel("handed to a person, the least sure first (%)")
    axes.set_ylabel("wrong among the rest (%)")
    axes.set_xlim(0, max(10.0, 200 * n_for_a_person / n))
    axes.set_ylim(bottom=0)
    axes.grid(visible=True)


def disagreements(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    champion_predictions: npt.NDArray[Any],
) -> bytes:
    """Draw images that only one of two models has right: up to eight for the champion, then up to eight for the model.

    Args:
        images: The test images, float32 of shape ``(n, height, width, 1)``, in 0–1.
        labels: Their labels, of shape ``(n,)``.
        predictions: The classes that the model predicts, of shape ``(n,)``.
        champion_predictions: The classes that the champion predicts, of shape ``(n,)``.
    """
    from matplotlib.figure import Figure

    right, champion_right = predictions == labels, champion_predictions == labels
    lost, won = np.flatnonzero(~right & champion_right), np.flatnonzero(right & ~champion_right)
    groups = [(f"Only the champion is right: {len(lost)}", lost), (f"Only this model is right: {len(won)}", won)]
    with _style():
        rows = [max(1, math.ceil(min(len(group), 2 * GRID) / GRID)) for _, group in groups]
        figure = Figure(figsize=(7.6, 1.2 + 2.25 * sum(rows)))
        parts: Any = figure.subfigures(2, 1, height_ratios=rows)
        for part, n_rows, (heading, group) in zip(parts, rows, groups, strict=True):
            part.suptitle(heading, x=0.03, ha="left")
            part.add_subplot(n_rows, GRID, 1).set_axis_off()  # an empty group needs its place too
            for position, index in enumerate(group[: 2 * GRID], start=1):
                axes = part.add_subplot(n_rows, GRID, position)
                title = f"Label {labels[index]}, Predict {predictions[index]}"
                _draw_digit(axes, images[index], title, f"champion {champion_predictions[index]} · no. {index}")
        return _png(figure)


def _draw_digit(axes: Axes, image: npt.NDArray[np.float32], title: str, caption: str) -> None:
    axes.set_axis_off()
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, loc="center", size=11)
    axes.text(0.5, -0.04, caption, color=MUTED, ha="center", va="top", transform=axes.transAxes)


def _describe(shown: int, wrong: int) -> str:
    if wrong == 0:
        return "No wrong predictions"
    if wrong == 1:
        return "The only wrong prediction"
    if shown == wrong:
        return f"All {wrong} wrong predictions, the clearest of each cause first"
    return f"{shown} of {wrong:,} wrong predictions, the clearest of each cause first"


def thumbnail(image: npt.NDArray[Any]) -> bytes:
    """One image of shape ``(height, width)``, any type in 0–255, as a PNG with the same pixels, dark ink on white."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(255 - np.rint(image).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def wrong_predictions_csv(cases: Sequence[Case], probabilities: npt.NDArray[np.float32]) -> bytes:
    """Write the wrong predictions as CSV, the most confident first.

    Args:
        cases: The wrong predictions.
        probabilities: The probabilities of all test images, of shape ``(n, 10)``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = (f"p{i}" for i in range(probabilities.shape[1]))
    writer.writerow(["index", "label", "prediction", "confidence", "cause", "status", *classes])
    for case in sorted(cases, key=lambda case: (-case.guesses[0].probability, case.index)):
        row = probabilities[case.index]
        numbers = [f"{number:.7g}" for number in (row.max(), *row)]
        prediction = case.guesses[0].label
        writer.writerow([case.index, case.label, prediction, numbers[0], case.cause, case.status or "", *numbers[1:]])
    return text.getvalue().encode()


def _style() -> AbstractContextManager[None]:
    """Set the look of the pictures in a context, whatever the user's Matplotlib settings are. These don't change."""
    from matplotlib import style

    return style.context(
        [
            "default",
            {
                "axes.axisbelow": True,
                "axes.edgecolor": FAINT,
                "axes.facecolor": CARD,
                "axes.labelcolor": MUTED,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlecolor": INK,
                "axes.titlelocation": "left",
                "axes.titlesize": 12,
                "axes.titleweight": "bold",
                "figure.constrained_layout.h_pad": 0.15,
                "figure.constrained_layout.use": True,
                "figure.constrained_layout.w_pad": 0.15,
                "figure.dpi": DOTS_PER_INCH,
                "figure.facecolor": CARD,
                "figure.titlesize": 12,
                "figure.titleweight": "bold",
                "font.size": 10,
                "grid.color": FAINT,
                "grid.linewidth": 0.8,
                "legend.edgecolor": CARD,
                "legend.facecolor": CARD,
                "legend.fancybox": False,
                "legend.framealpha": 1,
                "legend.title_fontsize": 9,
                "lines.linewidth": 1.8,
                "text.color": INK,
                "xtick.color": FAINT,
                "xtick.labelcolor": MUTED,
                "ytick.color": FAINT,
                "ytick.labelcolor": MUTED,
            },
        ]
    )


def _png(figure: Figure) -> bytes:
    """Render a figure as PNG with at most 64 colours, which takes a third of the bytes and looks the same."""
    from PIL import Image

    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(reduced, format="PNG", optimize=True)
    return reduced.getvalue()


class Shown(NamedTuple):
    """What a run's pictures show.

    Attributes:
        test: The test split.
        training: The training.
        evaluation: The model's evaluation.
        probabilities: The model's probabilities, of shape ``(n_test, 10)``.
        uncalibrated: Its probabilities before temperature scaling, of the same shape.
        robustness: Its robustness.
        cases: Its wrong predictions, the most instructive first.
        rival_predictions: The predictions of the champion that it is compared with, of shape ``(n_test,)``. None if
            there is no such champion.
        rival_robustness: The robustness of that champion, if there is one.
    """

    test: Split
    training: Training
    evaluation: Evaluation
    probabilities: npt.NDArray[np.floating]
    uncalibrated: npt.NDArray[np.floating]
    robustness: Robustness
    cases: Sequence[Case]
    rival_predictions: npt.NDArray[np.integer] | None
    rival_robustness: Robustness | None


class Picture(NamedTuple):
    """An entry of `PICTURES`.

    Attributes:
        section: The section of the report that shows the picture.
        alt: The text for readers who can't see the picture.
        draw: Draws the picture as PNG. Returns None if there is nothing to draw.
    """

    section: str
    alt: str
    draw: Callable[[Shown], bytes | None]


def _draw_disagreements(shown: Shown) -> bytes | None:
    if shown.rival_predictions is None:
        return None
    predictions = shown.probabilities.argmax(axis=1)
    return disagreements(shown.test.x, shown.test.y, predictions, shown.rival_predictions)


PICTURES: dict[str, Picture] = {
    "disagreements": Picture(
        "figures",
        "Test images that only this model or only the champion has right, each with its label and both predictions.",
        _draw_disagreements,
    ),
    "learning_curves": Picture(
        "curves",
        "Loss and accuracy by epoch, for training and validation images; the table has the numbers.",
        lambda shown: learning_curves(shown.training.history),
    ),
    "confusion_matrix": Picture(
        "confusion",
        "Counts by label, in rows, and prediction, in columns; only the errors are coloured.",
        lambda shown: confusion_matrix(shown.evaluation.confusion_matrix),
    ),
    "wrong_predictions": Picture(
        "wrong",
        "Wrong predictions drawn in a grid, each with its label, its prediction and the probable cause.",
        lambda shown: wrong_predictions(shown.test.x, shown.cases),
    ),
    "robustness": Picture(
        "robustness",
        "Share of wrong predictions by slice of the test images and by change, with confidence intervals.",
        lambda shown: robustness(
            shown.robustness.slices, shown.rival_robustness.slices if shown.rival_robustness else ()
        ),
    ),
    "confidence": Picture(
        "confidence",
        "Reliability diagram, and the errors that are left when the least sure images are handed to a person.",
        lambda shown: confidence(
            shown.test.y, shown.probabilities, shown.uncalibrated, shown.evaluation.n_for_a_person
        ),
    ),
}
