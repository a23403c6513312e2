"""Calibration: make a model's confidence equal to its accuracy."""

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
    """Find the temperature, in 0.1–10, by which the logits are divided so that confidence equals accuracy.

    This is temperature scaling after Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599. The
    temperature gives the smallest cross-entropy, and changes no prediction.

    Args:
        y_true: Labels of the validation split, of shape ``(n,)``.
        probabilities: The model's softmax outputs for that split, of shape ``(n, 10)``.
    """
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature))
        return -float(np.log(np.maximum(scaled[np.arange(len(y_true)), y_true], 1e-30)).mean())

    return math.exp(minimize_scalar(cross_entropy, bounds=(math.log(0.1), math.log(10))).x)


def apply_temperature(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities of shape ``(n, 10)`` as if the model's logits were divided by the temperature."""
    from scipy.special import softmax

    scaled: npt.NDArray[np.float64] = softmax(
        np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature, axis=1
    )
    return scaled


def divide_logits(model: "keras.Model", temperature: float) -> None:
    """Divide the last layer's weights by the temperature, so that the saved model gives calibrated probabilities."""
    last = model.layers[-1]
    last.set_weights([weight / np.float32(temperature) for weight in last.get_weights()])
