"""The arrays of a data set, in the form that train, evaluate and validate use."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from artifacts.records.data import Dataset
from artifacts.store import StoredFile

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]


class Split(NamedTuple):
    """One split of the data.

    Attributes:
        x: Images, float32 of shape ``(n, height, width, 1)``, in 0–1.
        y: Labels, integers of shape ``(n,)``, in 0–9.
    """

    x: Images
    y: Labels


def load_train(dataset: Dataset) -> Split:
    """The training split, ready to fit."""
    return Split(scale(read_array(dataset.x_train)), read_array(dataset.y_train))


def load_test(dataset: Dataset) -> Split:
    """The test split, ready to evaluate."""
    return Split(scale(read_array(dataset.x_test)), read_array(dataset.y_test))


def read_array(file: StoredFile) -> npt.NDArray[Any]:
    """Read a stored ``.npy`` array. Nothing is ever unpickled."""
    array: npt.NDArray[Any] = np.load(file.path, allow_pickle=False)
    return array


def scale(images: npt.NDArray[Any]) -> Images:
    """Scale raw images in 0–255, shape ``(n, height, width)``, to float32 in 0–1 with a channel axis."""
    with np.errstate(over="ignore"):  # pixels too large for float32 become infinite, and validate reports them
        scaled: Images = np.divide(images, 255, dtype=np.float32, casting="same_kind")
    return scaled[..., np.newaxis]
