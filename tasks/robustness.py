"""Robustness: accuracy on slices of the test set, and on changed test images that a person can still read."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from prefect import task

from artifacts.dataset import load_test, read_array, scale
from artifacts.records.data import N_CLASSES, Dataset
from artifacts.records.evaluation import CLASS_KIND, Robustness, Slice
from artifacts.records.model import Model
from artifacts.store import put
from tasks.model.saved import load_model
from tasks.running.cache import StepCache, origin
from tasks.running.logs import run_logger

Pixels = npt.NDArray[np.uint8]
Measure = npt.NDArray[np.float64]
INK = 127  # A pixel brighter than this, of 255, is ink.


@task(
    name="robustness",
    cache_policy=StepCache(libraries=("keras", "numpy", "scipy", "tensorflow")),
)
def measure_robustness(model: Model, dataset: Dataset) -> Robustness:
    """Predict the test set and changed copies of it, and count by digit, stroke, slant, size and change."""
    network = load_model(model)
    images, labels = read_array(dataset.x_test), load_test(dataset).y

    def is_right(changed: Pixels) -> npt.NDArray[np.bool_]:
        probabilities = network.predict(scale(changed), batch_size=1000, verbose=0)
        right: npt.NDArray[np.bool_] = probabilities.argmax(axis=1) == labels
        return right

    unchanged = is_right(images)
    rows = [np.where(labels == digit, unchanged, -1) for digit in range(N_CLASSES)]
    names: list[tuple[str, str]] = [(CLASS_KIND, f"{digit}") for digit in range(N_CLASSES)]
    for kind, name, inside in slice_images(images):
        rows.append(np.where(inside, unchanged, -1))
        names.append((kind, name))
    for name, change in CHANGES.items():
        rows.append(is_right(change(images, np.random.default_rng(0))))
        names.append(("change", name))
    right = np.array(rows, np.int8)
    slices = tuple(count(kind, name, row) for (kind, name), row in zip(names, right, strict=True) if (row >= 0).any())
    right = right[(right >= 0).any(axis=1)]
    worst = min((one for one in slices if one.kind == "change"), key=lambda one: one.accuracy)
    run_logger().info(f"of the changed images, least accurate on {worst.name}: {worst.accuracy:.4f}")
    return Robustness(
        weights_digest=model.weights_digest,
        data_digest=dataset.digest,
        slices=slices,
        right=put(".npy", lambda path: np.save(path, right)),
        origin=origin(),
    )


def count(kind: str, name: str, row: npt.NDArray[np.int8]) -> Slice:
    """Count one slice. `row` has 1 for a right prediction, 0 for a wrong one, -1 for an image outside the slice."""
    from scipy.stats import binomtest

    n, n_right = int((row >= 0).sum()), int((row == 1).sum())
    interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    return Slice.model_validate(
        {"kind": kind, "name": name, "n": n, "n_right": n_right, "low": interval.low, "high": interval.high}
    )


def slice_images(images: Pixels) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Split images, uint8 of shape ``(n, height, width)``, into thirds by stroke width, slant and size.

    Yields:
        The kind of the slice, its name, and which images are in it: bool of shape ``(n,)``.
    """
    measures: dict[str, tuple[Measure, tuple[str, str, str], str]] = {
        "stroke": (stroke_width(images), ("thin", "medium", "thick"), "px"),
        "slant": (slant(images), ("upright or left", "right", "far right"), "degrees"),
        "size": (size(images), ("small", "medium", "large"), "px²"),
    }
    for kind, (values, names, unit) in measures.items():
        edges = np.quantile(values, [1 / 3, 2 / 3])
        third = np.searchsorted(edges, values)
        low, high = (f"{edge:.3g} {unit}".replace("-", "−") for edge in edges)
        for n, (name, where) in enumerate(zip(names, (f"to {low}", f"to {high}", f"over {high}"), strict=True)):
            yield kind, f"{name}, {where}", third == n


def stroke_width(images: Pixels) -> Measure:
    """Width of the strokes in pixels: four times the mean distance of ink from the edge, as in a long stroke."""
    from scipy.ndimage import distance_transform_edt

    widths = np.zeros(len(images))
    for n, ink in enumerate(images > INK):
        if ink.any():
            # Distances are between centres of pixels; the edge is half a pixel nearer.
            widths[n] = 4 * (distance_transform_edt(ink)[ink].mean() - 0.5)
    return widths


def slant(images: Pixels) -> Measure:
    """How far the digits lean to the right, in degrees, computed from the second moments of their ink."""
    mass = images.astype(np.float64) + 1e-9
    total = mass.sum(axis=(1, 2))
    rows, columns = np.arange(images.shape[1]), np.arange(images.shape[2])
    row_mass, column_mass = mass.sum(axis=2), mass.sum(axis=1)
    y, x = row_mass @ rows / total, column_mass @ columns / total
    variance = row_mass @ rows**2 / total - y**2
    covariance = np.einsum("nij,i,j->n", mass, rows, columns) / total - y * x
    degrees: Measure = np.degrees(np.arctan2(-covariance, variance))
    return degrees


def size(images: Pixels) -> Measure:
    """Area of the smallest upright rectangle around the ink, in square pixels."""
    brightest = (images.max(axis=2), images.max(axis=1))
    area: Measure = np.ones(len(images))
    for side in (profile > INK for profile in brightest):
        area *= (side.shape[1] - side[:, ::-1].argmax(axis=1) - side.argmax(axis=1)) * side.any(axis=1)
    return area


def shift(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Shift each image by 2 pixels up or down and 2 to a side."""
    from scipy.ndimage import shift as move

    moved = np.empty_like(images)
    directions = rng.choice([-2, 2], (len(images), 2))
    for direction in np.unique(directions, axis=0):
        chosen = (directions == direction).all(axis=1)
        moved[chosen] = move(images[chosen], (0, *direction), order=0)
    return moved


def rotate(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Rotate each image by 15 degrees to one side or the other."""
    from scipy.ndimage import rotate as turn

    turned = np.empty_like(images)
    left = rng.random(len(images)) < 0.5
    for chosen, angle in ((left, 15), (~left, -15)):
        turned[chosen] = turn(images[chosen], angle, axes=(1, 2), reshape=False, order=1)
    return turned


def add_noise(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise with a standard deviation of 0.2 of the range."""
    noise = rng.normal(0, 0.2 * 255, images.shape).astype(np.float32)
    noisy: Pixels = np.clip(images + noise, 0, 255).astype(np.uint8)
    return noisy


def blur(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur by a Gaussian with a standard deviation of 1 pixel."""
    from scipy.ndimage import gaussian_filter

    del rng
    blurred: Pixels = gaussian_filter(images, (0, 1, 1))
    return blurred


def occlude(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Black out a square of 6×6 pixels somewhere in the middle 20×20."""
    occluded = images.copy()
    corners = rng.integers(4, 19, (len(images), 2))
    for n, (top, left) in enumerate(corners):
        occluded[n, top : top + 6, left : left + 6] = 0
    return occluded


CHANGES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "shifted by 2 px in both directions": shift,
    "rotated by 15°": rotate,
    "with noise of 0.2": add_noise,
    "blurred by 1 px": blur,
    "with 6×6 px hidden": occlude,
}
