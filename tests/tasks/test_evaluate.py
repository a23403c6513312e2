"""The figures are right where they can be worked out by hand."""

import numpy as np
import pytest

from artifacts.dataset import load_test, read_array
from tasks.evaluate import expected_calibration_error, measure, n_for_a_person


def certain(*classes):
    return np.eye(10, dtype=np.float32)[list(classes)]


def test_the_evaluation_of_the_sample_agrees_with_its_probabilities(dataset, evaluation):
    probabilities, test = read_array(evaluation.probabilities), load_test(dataset)
    assert probabilities.shape == (100, 10)
    assert evaluation.n_wrong == (probabilities.argmax(axis=1) != test.y).sum()
    assert evaluation.accuracy == pytest.approx(1 - evaluation.n_wrong / 100)
    assert np.sum(evaluation.confusion_matrix) == evaluation.n_test == 100
    assert sum(metrics.support for metrics in evaluation.classes) == 100


def test_figures_by_hand():
    y_true = np.array([0, 0, 1, 2])
    figures = measure(y_true, certain(0, 1, 1, 2) * 0.9 + 0.01)
    assert figures["accuracy"] == 0.75
    assert figures["n_wrong"] == 1
    assert figures["loss"] == pytest.approx(-(3 * np.log(0.91) + np.log(0.01)) / 4, rel=1e-5)
    assert figures["confusion_matrix"][0][1] == 1
    assert (figures["classes"][0].precision, figures["classes"][0].recall) == (1, 0.5)
    assert (figures["classes"][1].precision, figures["classes"][1].recall) == (0.5, 1)
    assert figures["classes"][9].support == 0


def test_calibration_error_by_hand():
    assert expected_calibration_error(np.array([0, 1]), certain(0, 1)) == 0
    assert expected_calibration_error(np.array([1, 0]), certain(0, 1)) == 1
    half = np.full((4, 10), 0.05, np.float32)
    half[:, 3] = 0.55
    assert expected_calibration_error(np.array([3, 3, 3, 0]), half) == pytest.approx(0.75 - 0.55)


def test_what_to_hand_to_a_person_by_hand():
    right = np.array([True, False, True, True, False])
    confidence = np.array([0.9, 0.6, 0.8, 0.7, 0.5])
    assert n_for_a_person(right, confidence) == 2
    assert n_for_a_person(right, confidence, target=0.7) == 1
    assert n_for_a_person(~right, confidence) == 5
    assert n_for_a_person(right[[0, 2]], confidence[[0, 2]]) == 0
