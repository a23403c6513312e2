"""The gate's word follows from the evidence; its error rates are what they should be, on simulated pairs."""

import numpy as np
import pytest

from artifacts.records.evaluation import Robustness, Slice
from artifacts.store import put
from tasks.gate import (
    GateParameters,
    _not_worse,
    check_alone,
    check_comparison,
    check_slices,
    compare,
    decide,
    images_needed,
    judge_model,
)

N = 10_000
DEFAULT = GateParameters()


def simulate(rng, champion_error, gain, *, discordant=0.009):
    """Labels, and which images two models have right: the first better by `gain`, in 0–1, on average.

    They disagree on a share `discordant` of the images, as two trainings of the baseline do (80–100 of 10,000).
    """
    y_true = rng.integers(0, 10, N)
    won, lost = (discordant + gain) / 2, (discordant - gain) / 2
    outcome = rng.choice(3, N, p=[1 - won - lost, won, lost])
    champion_right = rng.random(N) >= champion_error
    right = np.where(outcome == 1, True, np.where(outcome == 2, False, champion_right))
    champion_right = np.where(outcome == 1, False, np.where(outcome == 2, True, champion_right))
    return y_true, right, champion_right


def share_promoted(gain, parameters=DEFAULT, trials=1000):
    rng = np.random.default_rng(20)
    decisions = [
        decide(check_comparison(compare(*simulate(rng, 0.005, gain), parameters), parameters)) for _ in range(trials)
    ]
    return decisions.count("promote") / trials


@pytest.mark.expensive
def test_equal_models_are_rarely_promoted_as_better():
    assert share_promoted(0.0) <= DEFAULT.alpha


@pytest.mark.expensive
def test_a_real_regression_is_hardly_ever_promoted():
    assert share_promoted(-0.003) < 0.01
    assert share_promoted(-0.003, GateParameters(promote_if="not worse")) < 0.01


@pytest.mark.expensive
def test_a_model_that_is_better_is_promoted():
    assert share_promoted(0.003) >= 0.9


@pytest.mark.expensive
def test_equal_models_are_often_promoted_if_not_worse_is_enough():
    assert share_promoted(0.0, GateParameters(promote_if="not worse", margin=0.003)) > 0.8


def models(won, lost, n=1000):
    """Two models that differ on the first images: `won` the one has right, then `lost` the other."""
    right = np.ones(n, dtype=bool)
    champion_right = right.copy()
    champion_right[:won] = False
    right[won : won + lost] = False
    return np.arange(n) % 10, right, champion_right


def test_exact_p_values_by_hand():
    comparison = compare(*models(5, 0), DEFAULT)
    assert comparison.won == (0, 1, 2, 3, 4)
    assert comparison.lost == ()
    assert comparison.p_better == pytest.approx(0.5**5)
    assert comparison.p_worse == 1
    assert compare(*models(1, 3), DEFAULT).p_worse == pytest.approx(5 / 16)


@pytest.mark.parametrize(
    ("won", "lost", "decision"),
    [(20, 5, "promote"), (12, 8, "hold"), (8, 12, "hold"), (5, 20, "reject"), (0, 0, "hold")],
)
def test_decision(won, lost, decision):
    assert decide(check_comparison(compare(*models(won, lost), DEFAULT), DEFAULT)) == decision


def test_what_is_inconclusive_says_how_many_images_would_decide():
    better, _ = check_comparison(compare(*models(12, 8), DEFAULT), DEFAULT)
    needed = images_needed(12, 8, 1000, DEFAULT)
    assert f"some {needed:,} test images would be needed" in better.detail
    assert 5_000 < needed < 10_000
    # With so many images and the same shares, it is decided more often than not.
    times = needed / 1000
    won, lost = round(12 * times), round(8 * times)
    assert compare(*models(won, lost, needed), DEFAULT).p_better <= DEFAULT.alpha
    worse, _ = check_comparison(compare(*models(8, 12), DEFAULT), DEFAULT)
    assert "no number of test images would show it" in worse.detail


def test_harm_to_one_class_is_a_veto():
    y_true = np.arange(1000) % 10
    right, champion_right = np.ones(1000, dtype=bool), np.ones(1000, dtype=bool)
    champion_right[np.flatnonzero(y_true != 5)[:60]] = False
    right[np.flatnonzero(y_true == 5)[:12]] = False
    better, harmed = check_comparison(compare(y_true, right, champion_right, DEFAULT), DEFAULT)
    assert better.passed
    assert not harmed.passed
    assert "worse on 5" in harmed.detail
    assert decide([better, harmed]) == "hold"


@pytest.mark.parametrize(
    ("parameters", "decision"),
    [
        ({"minimum_accuracy": 0}, "promote"),
        ({"minimum_accuracy": 1}, "reject"),
        ({"minimum_accuracy": 0, "maximum_calibration_error": 0}, "hold"),
        ({"minimum_accuracy": 0, "maximum_size": 1}, "hold"),
        ({"minimum_accuracy": 0, "maximum_latency": 1e-9}, "hold"),
    ],
)
def test_the_first_version_is_judged_alone(evaluation, infra, parameters, decision):
    parameters = GateParameters.model_validate({"maximum_calibration_error": 1} | parameters)
    assert decide(check_alone(evaluation, infra, parameters)) == decision


def test_the_verdict_keeps_the_evidence(dataset, evaluation, infra, robustness):
    champion = evaluation.model_copy(update={"weights_digest": "f" * 64})
    verdict = judge_model.fn(
        dataset, evaluation, infra, robustness, champion, robustness, GateParameters(minimum_accuracy=0)
    )
    assert verdict.decision == "hold"
    assert verdict.rival == "f" * 64
    assert (verdict.comparison.won, verdict.comparison.lost, verdict.comparison.n) == ((), (), 100)


def test_what_passes_can_wait_for_a_persons_approval(dataset, evaluation, infra, robustness):
    parameters = GateParameters(minimum_accuracy=0, maximum_calibration_error=1, hold_for_approval=True)
    verdict = judge_model.fn(dataset, evaluation, infra, robustness, None, None, parameters)
    assert verdict.decision == "hold"
    assert [check.name for check in verdict.checks if not check.passed] == ["approved"]


def slices(right):
    """A record of two slices and a digit, from rows of which images are right."""
    names = [("digit", "0"), ("stroke", "thin"), ("change", "rotated")]
    figures = tuple(
        Slice(kind=kind, name=name, n=len(row), n_right=int(row.sum()), low=0, high=1)
        for (kind, name), row in zip(names, right, strict=True)
    )
    rows = put(".npy", lambda path: np.save(path, np.array(right, np.int8)))
    return Robustness(weights_digest="a", data_digest="b", slices=figures, right=rows)


@pytest.mark.parametrize(("n_harmed", "passed"), [(0, True), (4, True), (20, False)])
def test_a_slice_has_a_veto_if_harm_to_it_is_proven(n_harmed, passed):
    right = np.ones((3, 200), bool)
    harmed = right.copy()
    harmed[2, :n_harmed] = False
    check = check_slices(slices(harmed), slices(right), DEFAULT)
    assert check.passed is passed
    assert ("worse by more than 0.0100 on change: rotated" in check.detail) is not passed
    assert check_slices(slices(right), slices(harmed), DEFAULT).passed


def test_the_digits_are_left_to_their_own_check():
    right = np.ones((3, 200), bool)
    harmed = right.copy()
    harmed[0] = False
    assert check_slices(slices(harmed), slices(right), DEFAULT).passed


@pytest.mark.expensive
@pytest.mark.parametrize(("n", "wins"), [(200, 0), (1000, 0), (1000, 3), (10_000, 0), (10_000, 5), (10_000, 40)])
def test_a_loss_of_the_margin_passes_for_not_worse_at_most_at_its_level(n, wins):
    parameters, rng = GateParameters(margin=0.001), np.random.default_rng(21)
    pairs = zip(rng.poisson(wins, 4000), rng.poisson(wins + parameters.margin * n, 4000), strict=True)
    passed = [_not_worse(int(won), int(lost), n, parameters.margin) <= parameters.alpha for won, lost in pairs]
    # The score test is an approximation: its level holds to a few tenths of a point, and 4,000 trials show no less.
    assert np.mean(passed) <= parameters.alpha + 0.02


def test_two_models_that_agree_on_few_images_are_not_shown_to_be_alike():
    assert compare(*models(0, 0, n=100), DEFAULT).p_not_worse > 0.3
    assert compare(*models(0, 0, n=10_000), DEFAULT).p_not_worse < 0.01
