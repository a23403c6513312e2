"""The gate's word follows from the figures."""

import pytest

from tasks.gate import GateParameters, judge_model


@pytest.mark.parametrize(
    ("accuracy", "champion", "decision"),
    [
        (0.98, None, "reject"),
        (0.98, 0.97, "reject"),
        (0.992, None, "promote"),
        (0.992, 0.991, "promote"),
        (0.992, 0.992, "promote"),
        (0.992, 0.993, "hold"),
    ],
)
def test_decision(evaluation, accuracy, champion, decision):
    candidate = evaluation.model_copy(update={"accuracy": accuracy})
    rival = champion and evaluation.model_copy(update={"accuracy": champion, "weights_digest": "f" * 64})
    verdict = judge_model.fn(candidate, rival, GateParameters(minimum_accuracy=0.99))
    assert verdict.decision == decision
    assert all(f"{accuracy:.4f}" in check.detail for check in verdict.checks)


def test_a_loss_can_be_tolerated(evaluation):
    candidate = evaluation.model_copy(update={"accuracy": 0.992})
    rival = evaluation.model_copy(update={"accuracy": 0.993, "weights_digest": "f" * 64})
    assert judge_model.fn(candidate, rival, GateParameters(tolerated_loss=0.002)).decision == "promote"
