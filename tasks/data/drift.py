"""Drift: whether images look like a model's training images, and whether the model is as sure as on its test images."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from artifacts.records.base import Record

Values = npt.NDArray[np.floating]
# What is measured of each image, see `measure`.
FIGURES = (
    "mean intensity (0–1)",
    "share of ink pixels",
    "distance of the centre of mass from the centre (pixels)",
    "spread of the ink in height (pixels)",
    "spread of the ink in width (pixels)",
)
# Lengths of the blocks of consecutive images whose means are compared. A writer wrote about a hundred digits in a row,
# and some writers had thick pens, so the mean of a short block may be further out than that of a long one.
SIZES = (1, 4, 16, 64, 256)
# A block length counts if the data have at least this many such blocks. Fewer blocks would each be most of the data.
ROWS = 30
# How much further out than any block of training images other images may be. The value was chosen on MNIST's training
# set alone: with the profile of one half, at most 0.4 % of the blocks of 4 to 5,000 images of the other half are
# further out.
MARGIN = 1.25
# The share of images that may be dark on light, or may look so because they are dark.
TOLERATED_SHARE_INVERTED = 0.01


class Usual(Record):
    """The usual values of a figure.

    Attributes:
        mean: The mean over all images.
        furthest: By length of a block of images: the largest distance of the block's mean from `mean`.
    """

    mean: float
    furthest: dict[int, float]

    def tolerated(self, n: int) -> float:
        """How far the mean of `n` images may be from `mean`."""
        return MARGIN * self.furthest[max(size for size in self.furthest if size <= n)]


class Profile(Record):
    """The usual values for a model's data. Each version in the registry has its own profile.

    Attributes:
        images: The usual values over the training images, by name of the figure.
        confidence: The usual values of the largest probability, over the test images.
    """

    images: dict[str, Usual]
    confidence: Usual


def profile(x_train: npt.NDArray[Any], probabilities: npt.NDArray[np.float32]) -> Profile:
    """The profile of training images, shape ``(n, 28, 28)`` in 0–255, and of test probabilities, shape ``(m, 10)``."""
    measured = np.concatenate([measure(x_train[start : start + 1000]) for start in range(0, len(x_train), 1000)])
    return Profile(
        images={name: usual(values) for name, values in zip(FIGURES, measured.T, strict=True)},
        confidence=usual(probabilities.max(axis=1).astype(np.float64)),
    )


def usual(values: Values) -> Usual:
    """The usual values of a figure, from its values in the order of the images, of shape ``(n,)``."""
    mean, sums = values.mean(), np.concatenate([[0], values.cumsum()])
    return Usual(
        mean=float(mean),
        furthest={
            size: float(np.abs((sums[size:] - sums[:-size]) / size - mean).max())
            for size in SIZES
            if size == 1 or size * ROWS <= len(values)
        },
    )


def measure(images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Measure the `FIGURES` of each image that isn't blank: shape ``(n, 5)``.

    Args:
        images: Light on dark, shape ``(n, height, width)``, in 0–255.
    """
    x = images[images.any(axis=(1, 2))] / 255
    mass = x.sum(axis=(1, 2))
    distances, spreads = [], []
    for ink in (x.sum(axis=2), x.sum(axis=1)):  # by row, by column
        position = np.arange(ink.shape[1])
        centre = ink @ position / mass
        distances.append(centre - len(position) / 2)
        spreads.append(np.sqrt(np.maximum(ink @ position**2 / mass - centre**2, 0)))
    return np.stack([x.mean(axis=(1, 2)), (x > 0.5).mean(axis=(1, 2)), np.hypot(*distances), *spreads], axis=1)


@dataclass
class Drift:
    """Sums up the scored images, batch by batch, to compare them with a profile.

    Attributes:
        n_images: How many images were counted.
        n_inverted: How many of them were dark on light.
        n_measured: How many of them aren't blank.
        figures: The sums of the figures of `measure`, shape ``(5,)``.
        confidence: The sum of the largest probabilities.
    """

    n_images: int = 0
    n_inverted: int = 0
    n_measured: int = 0
    figures: Values = field(default_factory=lambda: np.zeros(len(FIGURES)))
    confidence: float = 0.0

    def add(self, images: npt.NDArray[np.uint8], n_inverted: int, confidence: npt.NDArray[np.float32]) -> None:
        """Count a batch.

        Args:
            images: Light on dark, shape ``(n, 28, 28)``, in 0–255.
            n_inverted: How many of them were dark on light.
            confidence: The largest probability of each image, shape ``(n,)``, in 0–1.
        """
        measured = measure(images)
        self.n_images += len(images)
        self.n_inverted += n_inverted
        self.n_measured += len(measured)
        self.figures += measured.sum(axis=0)
        self.confidence += float(confidence.sum())

    def sentences(self, expected: Profile | None) -> tuple[str, ...]:
        """Say how the counted images differ from a profile. Without a profile, say only what is odd in itself."""
        found = []
        if self.n_inverted > TOLERATED_SHARE_INVERTED * self.n_images:
            found.append(f"{self.n_inverted:,} of {self.n_images:,} images are dark on light, and were inverted")
        n_blank = self.n_images - self.n_measured
        if n_blank:
            found.append(f"{n_blank:,} of {self.n_images:,} images are blank")
        if expected is None:
            return tuple(found)
        if self.n_measured:
            for name, total in zip(FIGURES, self.figures, strict=True):
                mean, known = total / self.n_measured, expected.images[name]
                if abs(mean - known.mean) > known.tolerated(self.n_measured):
                    found.append(f"{name} is {mean:.2f} on average, {known.mean:.2f} in the training data")
        sure, known = self.confidence / self.n_images, expected.confidence
        if abs(sure - known.mean) > known.tolerated(self.n_images):
            found.append(f"the model's confidence is {sure:.2f} on average, {known.mean:.2f} on its own test images")
        return tuple(found)
