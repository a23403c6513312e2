"""Records of a release: the verdict, the version, the history."""

from datetime import datetime
from typing import Any, Literal

from pydantic import AliasChoices, Field

from artifacts.records.base import Record, StepRecord
from artifacts.records.model import Model


class Check(Record):
    """One check of the gate."""

    name: str
    passed: bool
    on_failure: Literal["hold", "reject"]
    detail: str = Field(description="The figures behind it, in words.")


class Comparison(Record):
    """A model against the champion, on the same test images.

    Attributes:
        won: Indices of the images that the model has right and the champion wrong.
        lost: Indices of those that the champion has right and the model wrong.
        n: Test images.
        p_better: One-sided exact McNemar p-value; small if the model is better.
        p_worse: The same for the other side.
        p_not_worse: Small if the model isn't worse by more than the margin.
        p_worse_by_class: By class, small if the model is worse there; corrected for ten looks.
        images_needed: Test images that would decide, if the observed difference is the true one; none if none would.
    """

    won: tuple[int, ...]
    lost: tuple[int, ...]
    n: int
    p_better: float
    p_worse: float
    p_not_worse: float
    p_worse_by_class: tuple[float, ...]
    images_needed: int | None


class Verdict(StepRecord):
    """The gate's word on a model: what to do with it, and each reason."""

    decision: Literal["promote", "hold", "reject"]
    checks: tuple[Check, ...]
    rival: str | None = Field(
        default=None,
        description="Weights digest of the champion that the model was compared with, if any.",
        validation_alias=AliasChoices("rival", "champion"),  # its name in manifests of version 0.1.0
    )
    comparison: Comparison | None = None


class Version(Record):
    """A version in the model registry.

    Attributes:
        name: The registered model's name.
        version: The version's number.
        mlflow_run_id: The MLflow run that holds its parameters, metrics and files.
        model: The model registered.
    """

    name: str
    version: int
    mlflow_run_id: str
    model: Model


class Lineage(Record):
    """What a version was made from, so that it can be made again, and what came of it; a tag of the version.

    A field added later needs a default: the versions registered before lack it.

    Attributes:
        revision: The commit of the code.
        patch: SHA-256 of the patch, a file of the version's MLflow run, that the code had besides; none if none.
        parameters: All of train's.
        dataset: `Dataset` as JSON: whether its files are still there shows when it is read.
        n_train: Images trained on.
        n_validation: Images held out of the training data.
        code: Digest by module of what train and evaluate depend on.
        libraries: Version by library that can change their results, Python's too.
        arithmetic: Keras's dtype policy of the fit.
        processor: The processor of the fit.
        weights_digest: The model that came of it.
        metrics: Its figures on the test set.
    """

    revision: str
    patch: str | None
    parameters: dict[str, Any]
    dataset: dict[str, Any]
    n_train: int
    n_validation: int
    code: dict[str, str]
    libraries: dict[str, str]
    arithmetic: str
    processor: str
    weights_digest: str
    metrics: dict[str, int | float]


class AliasMove(Record):
    """One line of the registry's history.

    Attributes:
        at: When, in UTC.
        by: Who or what: a flow run, or a person at the command line.
        alias: The alias that moved.
        before: The version that bore it before; none if none did.
        after: The version that bears it now.
        why: The reason, in words.
        verdict: The gate's word that it rests on; none where a person decided.
    """

    at: datetime
    by: str
    alias: str
    before: int | None
    after: int
    why: str
    verdict: Literal["promote", "hold", "reject"] | None = None


class Registration(StepRecord):
    """What register did.

    Attributes:
        version: The version that holds the model.
        created: Whether this run registered it; false if it was there already.
        champion_number: The number of the champion's version after this run, if there is one.
        previous_champion_number: The number of the champion's version before this run, if there was one.
        withheld: Why a person replaced this version as champion, if the gate would have it back.
    """

    version: Version
    created: bool
    champion_number: int | None
    previous_champion_number: int | None
    withheld: str | None = None
