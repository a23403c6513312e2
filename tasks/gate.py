"""Gate: decide from the evidence whether to promote a model to champion, hold it back, or reject it."""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from prefect import task
from pydantic import BaseModel, ConfigDict, Field

from artifacts.dataset import read_array
from artifacts.records.data import N_CLASSES, Dataset
from artifacts.records.evaluation import Evaluation, InfraValidation, Robustness
from artifacts.records.release import Check, Comparison, Verdict
from tasks.running.cache import StepCache, origin

Right = npt.NDArray[np.bool_]


class GateParameters(BaseModel):
    """What a model must show to become the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_accuracy: float = Field(
        default=0.99, ge=0, le=1, description="Test accuracy below which a model is rejected, in 0–1."
    )
    promote_if: Literal["better", "not worse"] = Field(
        default="better",
        description="What must be shown against the champion: `better`, or `not worse` by more than the margin.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Level of each one-sided test: the probability that chance alone passes for proof.",
    )
    margin: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Loss of accuracy that `not worse` tolerates, in 0–1 (0.001 is 0.1 points).",
    )
    slice_margin: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Loss of accuracy that is tolerated on a slice of the test images, or on changed images, in 0–1.",
    )
    maximum_calibration_error: float = Field(
        default=0.02, ge=0, le=1, description="Expected calibration error above which a model is held, in 0–1."
    )
    maximum_size: int = Field(
        default=50_000_000,
        ge=1,
        le=10**12,
        description="Size of the .keras file above which a model is held, in bytes.",
    )
    maximum_latency: float = Field(
        default=0.5, gt=0, le=3600, description="Time to predict one image above which a model is held, in seconds."
    )
    hold_for_approval: bool = Field(
        default=False,
        description="Hold a model that passes until a person promotes it, by the deployment mnist-promote/manual.",
    )


@task(name="gate", cache_policy=StepCache(libraries=("numpy", "scipy")))
def judge_model(
    dataset: Dataset,
    evaluation: Evaluation,
    infra: InfraValidation,
    robustness: Robustness,
    rival: Evaluation | None,
    rival_robustness: Robustness | None,
    parameters: GateParameters,
) -> Verdict:
    """Judge a model by its figures and, if another model is champion, by comparing both on the same test images."""
    comparison = None
    if rival is not None:
        y_true = read_array(dataset.y_test)
        right, rival_right = (read_array(one.probabilities).argmax(axis=1) == y_true for one in (evaluation, rival))
        comparison = compare(y_true, right, rival_right, parameters)
    checks = [
        *check_alone(evaluation, infra, parameters),
        *(check_comparison(comparison, parameters) if comparison else ()),
        *([check_slices(robustness, rival_robustness, parameters)] if rival_robustness else ()),
    ]
    if parameters.hold_for_approval:
        checks.append(
            Check(
                name="approved",
                passed=False,
                on_failure="hold",
                detail="waits for a person: `make promote VERSION=… REASON=…`, or the deployment mnist-promote/manual",
            )
        )
    return Verdict(
        decision=decide(checks),
        checks=tuple(checks),
        rival=rival.weights_digest if rival else None,
        comparison=comparison,
        origin=origin(),
    )


def decide(checks: list[Check]) -> Literal["promote", "hold", "reject"]:
    """Promote if every check passed, reject if a failed check demands it, else hold."""
    if any(not check.passed and check.on_failure == "reject" for check in checks):
        return "reject"
    return "promote" if all(check.passed for check in checks) else "hold"


def check_alone(evaluation: Evaluation, infra: InfraValidation, parameters: GateParameters) -> list[Check]:
    """What a model must show without a comparison. This is everything while there is no champion."""
    p = parameters
    return [
        Check(
            name="accurate enough",
            passed=evaluation.accuracy >= p.minimum_accuracy,
            on_failure="reject",
            detail=f"test accuracy {evaluation.accuracy:.4f}; at least {p.minimum_accuracy:.4f} is required",
        ),
        Check(
            name="calibrated",
            passed=evaluation.expected_calibration_error <= p.maximum_calibration_error,
            on_failure="hold",
            detail=f"expected calibration error {evaluation.expected_calibration_error:.4f}; "
            f"at most {p.maximum_calibration_error:.4f} is allowed",
        ),
        Check(
            name="small enough",
            passed=infra.size <= p.maximum_size,
            on_failure="hold",
            detail=f"{infra.size / 1e6:.1f} MB; at most {p.maximum_size / 1e6:.1f} MB is allowed",
        ),
        Check(
            name="fast enough",
            passed=infra.seconds_for_1 <= p.maximum_latency,
            on_failure="hold",
            detail=f"{infra.seconds_for_1 * 1e3:.1f} ms for one image; "
            f"at most {p.maximum_latency * 1e3:.0f} ms is allowed",
        ),
    ]


def check_comparison(comparison: Comparison, parameters: GateParameters) -> list[Check]:
    """What a model must show against the champion.

    A class stops a model only if it is proven to be worse. If each class had to be proven not worse, nearly every equal
    model would be held back.
    """
    p, c = parameters, comparison
    counts = f"right where the champion is wrong: {len(c.won)}, wrong where it is right: {len(c.lost)}, of {c.n:,}"
    shown, value = ("better", c.p_better) if p.promote_if == "better" else ("not worse", c.p_not_worse)
    margin = "" if p.promote_if == "better" else f" by more than {p.margin:.4f}"
    proven = value <= p.alpha
    needed = "" if proven else f"; {_in_words(c.images_needed)}"
    harmed = [k for k, value in enumerate(c.p_worse_by_class) if value <= p.alpha]
    return [
        Check(
            name=f"{shown} than the champion",
            passed=proven,
            on_failure="reject" if c.p_worse <= p.alpha else "hold",
            detail=f"{counts}; that it is {shown}{margin} is {'' if proven else 'not '}shown (p = {value:.3g}, "
            f"level {p.alpha:g}){needed}",
        ),
        Check(
            name="no class harmed",
            passed=not harmed,
            on_failure="hold",
            detail="; ".join(
                f"worse on {k} than the champion (corrected p = {c.p_worse_by_class[k]:.3g})" for k in harmed
            )
            or f"no class is shown to be worse (least corrected p = {min(c.p_worse_by_class):.3g}, level {p.alpha:g})",
        ),
    ]


def check_slices(robustness: Robustness, rival: Robustness, parameters: GateParameters) -> Check:
    """No slice of the test images, and no change of them, may be shown to be worse than the champion by the margin.

    Two trainings of one network differ by half a point on changed images. Without a margin, nearly every model would be
    shown to be worse. The digits are left out, because they have their own check.
    """
    right, rival_right = (
        {
            f"{one.kind}: {one.name}": row
            for one, row in zip(r.slices, read_array(r.right), strict=True)
            if not one.is_class
        }
        for r in (robustness, rival)
    )
    looked_at = [name for name in right if name in rival_right]
    p_worse = {}
    for name in looked_at:
        ours, theirs = right[name], rival_right[name]
        lost, won = int(((ours == 0) & (theirs == 1)).sum()), int(((ours == 1) & (theirs == 0)).sum())
        value = _not_worse(lost, won, int((ours >= 0).sum()), -parameters.slice_margin)
        p_worse[name] = min(1.0, len(looked_at) * value)
    harmed = [name for name, value in p_worse.items() if value <= parameters.alpha]
    margin = f"by more than {parameters.slice_margin:.4f}"
    return Check(
        name="no slice harmed",
        passed=not harmed,
        on_failure="hold",
        detail="; ".join(f"worse {margin} on {name} (corrected p = {p_worse[name]:.3g})" for name in harmed)
        or f"of {len(p_worse)} slices and changes none is shown to be worse {margin} (least corrected p = "
        f"{min(p_worse.values(), default=1.0):.3g}, level {parameters.alpha:g})",
    )


def _in_words(images_needed: int | None) -> str:
    if images_needed is None:
        return "no number of test images would show it, if the difference is what it seems"
    return f"some {images_needed:,} test images would be needed to show it, if the difference is what it seems"


def compare(
    y_true: npt.NDArray[np.integer], right: Right, rival_right: Right, parameters: GateParameters
) -> Comparison:
    """Compare two models on the same images. Only the images that one has right and the other wrong tell them apart.

    Args:
        y_true: Labels, of shape ``(n,)``.
        right: Which images the candidate has right, of shape ``(n,)``.
        rival_right: Which images the rival has right, of shape ``(n,)``.
        parameters: The level and the margin are used.

    Returns:
        The results of one-sided exact McNemar tests: that the candidate is better; that it is worse; that it isn't
        worse by more than the margin; and that it is worse on each class, with Bonferroni's correction.
    """
    won, lost = right & ~rival_right, ~right & rival_right
    wins, losses = int(won.sum()), int(lost.sum())
    return Comparison(
        won=tuple(np.flatnonzero(won).tolist()),
        lost=tuple(np.flatnonzero(lost).tolist()),
        n=len(y_true),
        p_better=_at_least(wins, wins + losses),
        p_worse=_at_least(losses, wins + losses),
        p_not_worse=_not_worse(wins, losses, len(y_true), parameters.margin),
        p_worse_by_class=tuple(
            min(1.0, N_CLASSES * _at_least(int(lost[y_true == k].sum()), int((won | lost)[y_true == k].sum())))
            for k in range(N_CLASSES)
        ),
        images_needed=images_needed(wins, losses, len(y_true), parameters),
    )


def _at_least(successes: int, trials: int) -> float:
    """McNemar's exact one-sided test: the probability that a fair coin gives at least as many successes."""
    from scipy.stats import binomtest

    return float(binomtest(successes, trials, 0.5, "greater").pvalue) if trials else 1.0


def _not_worse(wins: int, losses: int, n: int, margin: float) -> float:
    """The p-value of "worse by at least the margin" in the score test for paired proportions.

    After Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998). The variance is that of the most likely shares at which the model is
    worse by exactly the margin. So a few disagreements prove nothing on a few images. The margin may be negative.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import xlogy
    from scipy.stats import norm

    def unlikelihood(share_won: float) -> float:
        share_lost = share_won + margin
        return -float(
            xlogy(wins, share_won) + xlogy(losses, share_lost) + xlogy(n - wins - losses, 1 - share_won - share_lost)
        )

    share_won = float(
        minimize_scalar(unlikelihood, bounds=(max(0.0, -margin), (1 - margin) / 2), options={"xatol": 1e-9}).x
    )
    deviation = math.sqrt(max(2 * share_won + margin - margin**2, 1e-12) / n)
    return float(norm.sf(((wins - losses) / n + margin) / deviation))


def images_needed(wins: int, losses: int, n: int, parameters: GateParameters) -> int | None:
    """How many test images would show the difference with a power of 80 %, if the observed shares are the true ones.

    After Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43
    (1987).

    Returns:
        None if the difference has the wrong sign, since more images would only show that.
    """
    from scipy.stats import norm

    wanted = 0.0 if parameters.promote_if == "better" else parameters.margin
    discordant, difference = (wins + losses) / n, (wins - losses) / n
    if difference + wanted <= 0:
        return None
    deviation = math.sqrt(max(discordant - difference**2, 0))
    spread = norm.ppf(1 - parameters.alpha) * math.sqrt(discordant) + norm.ppf(0.8) * deviation
    return math.ceil((spread / (difference + wanted)) ** 2)
