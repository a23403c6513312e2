"""Gate: the word on a model: promote it to champion, hold it back, or reject it."""

from prefect import task
from pydantic import BaseModel, ConfigDict, Field

from artifacts.records import Check, Evaluation, Verdict
from tasks.caching import StepCache, origin


class GateParameters(BaseModel):
    """What a model must show to become the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_accuracy: float = Field(
        default=0.99, ge=0, le=1, description="Test accuracy below which a model is rejected, in 0–1."
    )
    tolerated_loss: float = Field(
        default=0.0, ge=0, le=1, description="How much test accuracy may be lost against the champion, in 0–1."
    )


@task(name="gate", cache_policy=StepCache())
def judge_model(evaluation: Evaluation, champion: Evaluation | None, parameters: GateParameters) -> Verdict:
    """Judge a model by its evaluation and that of the champion, if there is another, on the same test set."""
    checks = [
        Check(
            name="accurate enough",
            passed=evaluation.accuracy >= parameters.minimum_accuracy,
            detail=f"test accuracy {evaluation.accuracy:.4f}; at least {parameters.minimum_accuracy:.4f} is required",
        )
    ]
    if champion is not None:
        checks.append(
            Check(
                name="no worse than the champion",
                passed=evaluation.accuracy >= champion.accuracy - parameters.tolerated_loss,
                detail=f"test accuracy {evaluation.accuracy:.4f}; the champion's is {champion.accuracy:.4f}, "
                f"a loss of {parameters.tolerated_loss:.4f} is tolerated",
            )
        )
    if not checks[0].passed:
        decision = "reject"
    elif all(check.passed for check in checks):
        decision = "promote"
    else:
        decision = "hold"
    return Verdict(
        decision=decision,
        checks=tuple(checks),
        champion=champion.weights_digest if champion else None,
        origin=origin(),
    )
