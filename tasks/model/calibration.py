"""Calibration: makes a model as sure as it is right."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from artifacts.dataset import Labels

if TYPE_CHECKING:
    import keras

Probabilities = npt.NDArray[np.float32]


def normalize(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """The probabilities in float64, each row divided by its sum."""
    exact: npt.NDArray[np.float64] = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    return exact


def fit_temperature(y_true: Labels, probabilities: Probabilities) -> float:
    """The number to divide the logits by so that confidence is accuracy on the validation split, in 0.1–10.

    Temperature scaling of Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599: it has the least
    cross-entropy, and changes no prediction.

    Args:
        y_true: Labels of the validation split, of shape ``(n,)``.
        probabilities: The model's softmax outputs for it, of shape ``(n, 10)``.
    """
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature))
        return -float(np.log(np.maximum(scaled[np.arange(len(y_true)), y_true], 1e-30)).mean())

    return math.exp(minimize_scalar(cross_entropy, bounds=(math.log(0.1), math.log(10))).x)


def apply_temperature(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """The probabilities, of shape ``(n, 10)``, that a model's logits divided by the temperature give."""
    from scipy.special import softmax

    scaled: npt.NDArray[np.float64] = softmax(
        np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature, axis=1
    )
    return scaled


def divide_logits(model: "keras.Model", temperature: float) -> None:
    """Divide the last layer's weights by the temperature: whoever loads the model gets calibrated probabilities."""
    last = model.layers[-1]
    last.set_weights([weight / np.float32(temperature) for weight in last.get_weights()])
