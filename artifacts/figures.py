"""The pictures and the table of a model's evaluation: pure functions, from figures and arrays to a file's bytes.

Equal inputs give equal bytes. Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind
readers can tell apart. Every picture brings its own light card, so that it reads alike on a white and on a dark page,
and has twice the pixels it is meant to be shown at. Matplotlib and Pillow are imported when something is drawn.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from artifacts.records import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#EB9A45"
CARD, INK, MUTED, FAINT = "#FBFBFA", "#24292F", "#5D646D", "#D9DCDF"

DOTS_PER_INCH = 160  # an inch is meant to be shown 80 pixels wide
GRID = 4


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
    """Draw a confusion matrix, as PNG: only the errors are coloured, so that the diagonal doesn't drown them.

    Args:
        matrix: Counts, a row for each label and a column for each prediction.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    classes = np.arange(len(counts))
    errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    # Light enough for dark ink, and still so where a page inverts the picture for a dark theme.
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


def wrong_predictions(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    confidence: npt.NDArray[Any],
) -> bytes:
    """Draw the 16 most confident wrong predictions in a 4×4 grid, as PNG.

    Args:
        images: The test images, float32 of shape ``(n, height, width, 1)``, in 0–1.
        labels: Their labels, of shape ``(n,)``.
        predictions: The classes predicted, of shape ``(n,)``.
        confidence: The probability of each prediction, of shape ``(n,)``, in 0–1.
    """
    from matplotlib.figure import Figure

    wrong = most_confident_wrong(labels, predictions, confidence)
    shown = wrong[: GRID**2]
    with _style():
        rows = math.ceil(len(shown) / GRID)
        figure = Figure(figsize=(7.6, 0.6 + 2.25 * rows))
        # Without images below it, the layout wouldn't keep the title off the edge.
        figure.suptitle(_describe(len(shown), len(wrong)), x=0.03, y=None if rows else 0.65, ha="left")
        for position, index in enumerate(shown, start=1):
            axes = figure.add_subplot(rows, GRID, position)
            title = f"Label {labels[index]}, Predict {predictions[index]}"
            _draw_digit(axes, images[index], title, f"{confidence[index]:.1%} sure · no. {index}")
        return _png(figure)


def disagreements(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    champion_predictions: npt.NDArray[Any],
) -> bytes:
    """Draw images that only one of two models has right, up to eight that only the champion has, then eight others.

    Args:
        images: The test images, float32 of shape ``(n, height, width, 1)``, in 0–1.
        labels: Their labels, of shape ``(n,)``.
        predictions: The classes that the model predicts, of shape ``(n,)``.
        champion_predictions: Those that the champion predicts, of shape ``(n,)``.
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
            part.add_subplot(n_rows, GRID, 1).set_axis_off()  # so that an empty group has its place
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
        return f"All {wrong} wrong predictions, the most confident first"
    return f"The {shown} most confident of {wrong:,} wrong predictions"


def most_confident_wrong(
    labels: npt.NDArray[Any], predictions: npt.NDArray[Any], confidence: npt.NDArray[Any]
) -> npt.NDArray[np.intp]:
    """Indices of the wrong predictions, the most confident first, equal ones by index."""
    wrong = np.flatnonzero(labels != predictions)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def thumbnail(image: npt.NDArray[np.float32]) -> bytes:
    """One image, of shape ``(height, width, 1)`` in 0–1, as a PNG of as many pixels: dark ink on white."""
    from PIL import Image

    pixels = np.rint((1 - image[..., 0]) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def wrong_predictions_csv(labels: npt.NDArray[Any], probabilities: npt.NDArray[np.float32]) -> bytes:
    """Write the wrong predictions as CSV, the most confident first.

    Args:
        labels: The labels of the test images, of shape ``(n,)``.
        probabilities: Their softmax outputs, of shape ``(n, 10)``.
    """
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "prediction", "confidence", *(f"p{i}" for i in range(probabilities.shape[1]))])
    for index in most_confident_wrong(labels, predictions, confidence):
        numbers = (confidence[index], *probabilities[index])
        writer.writerow([index, labels[index], predictions[index], *(f"{number:.7g}" for number in numbers)])
    return text.getvalue().encode()


def _style() -> AbstractContextManager[None]:
    """The pictures' look, which leaves Matplotlib's settings as they were, and doesn't depend on the user's."""
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
    """Render a figure as PNG of at most 64 colours, a third of the bytes without a visible difference."""
    from PIL import Image

    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(reduced, format="PNG", optimize=True)
    return reduced.getvalue()
