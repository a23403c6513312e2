"""Evaluate: compute a model's figures on the test set. No step uses the test set for training."""

from typing import Any

import numpy as np
import numpy.typing as npt
from prefect import task

from artifacts.dataset import Labels, load_test
from artifacts.records.data import N_CLASSES, Dataset
from artifacts.records.evaluation import ClassMetrics, Evaluation
from artifacts.records.model import Model
from artifacts.store import put
from tasks.model.calibration import Probabilities, normalize
from tasks.model.saved import load_model
from tasks.running.cache import StepCache, origin
from tasks.running.logs import run_logger


@task(name="evaluate", cache_policy=StepCache(libraries=("keras", "numpy", "scikit-learn", "tensorflow")))
def evaluate_model(model: Model, dataset: Dataset) -> Evaluation:
    """Predict the test set, and measure how good the predictions are."""
    test = load_test(dataset)
    network = load_model(model)
    probabilities: Probabilities = network.predict(test.x, batch_size=1000, verbose=0)
    evaluation = Evaluation(
        weights_digest=model.weights_digest,
        data_digest=dataset.digest,
        **measure(test.y, probabilities),
        probabilities=put(".npy", lambda path: np.save(path, probabilities)),
        origin=origin(),
    )
    run_logger().info(
        f"test accuracy {evaluation.accuracy:.4f}, {evaluation.n_wrong} of {evaluation.n_test:,} wrong, "
        f"loss {evaluation.loss:.4f}"
    )
    return evaluation


def measure(y_true: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """Compute the figures of `Evaluation` from labels of shape ``(n,)`` and probabilities of shape ``(n, 10)``."""
    from sklearn import metrics

    labels = list(range(N_CLASSES))
    y_pred = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=labels, zero_division=0
    )
    return {
        # scikit-learn wants rows whose sum is closer to 1 than float32 allows.
        "loss": metrics.log_loss(y_true, normalize(probabilities), labels=labels),
        "accuracy": metrics.accuracy_score(y_true, y_pred),
        "n_test": len(y_true),
        "n_wrong": int((y_true != y_pred).sum()),
        "expected_calibration_error": expected_calibration_error(y_true, probabilities),
        "n_for_a_person": n_for_a_person(y_pred == y_true, probabilities.max(axis=1)),
        "confusion_matrix": tuple(map(tuple, metrics.confusion_matrix(y_true, y_pred, labels=labels).tolist())),
        "classes": tuple(
            ClassMetrics(label=label, precision=p, recall=r, f1=f, support=n)
            for label, p, r, f, n in zip(labels, precision, recall, f1, support, strict=True)
        ),
    }


def n_for_a_person(right: npt.NDArray[np.bool_], confidence: npt.NDArray[np.floating], target: float = 0.999) -> int:
    """How many images a person must look at, the least sure first, so that a share of `target` of the rest is right.

    Args:
        right: Which images are predicted right, of shape ``(n,)``.
        confidence: The probability of each prediction, of shape ``(n,)``.
        target: The share, in 0–1.
    """
    surest_first = right[np.argsort(-confidence, kind="stable")]
    kept = np.arange(1, len(right) + 1)
    good = np.flatnonzero(np.cumsum(surest_first) >= target * kept)
    return len(right) - (int(good[-1]) + 1 if len(good) else 0)


def expected_calibration_error(y_true: Labels, probabilities: Probabilities, n_bins: int = 15) -> float:
    """Expected calibration error, in 0–1: the mean gap between confidence and accuracy over bins, weighted by size.

    The 15 bins have equal width, as in Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y_true
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    # In each bin, the size times the gap is the absolute sum of (right - confidence).
    gaps = np.bincount(bins, weights=right - confidence.astype(np.float64), minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y_true))
