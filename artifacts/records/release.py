"""Records about a release: the verdict, the version, the history."""

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
    detail: str = Field(description="The figures behind the check, in words.")


class Comparison(Record):
    """A comparison of a model with the champion, on the same test images.

    Attributes:
        won: The indices of the images that the model has right and the champion wrong.
        lost: The indices of the images that the champion has right and the model wrong.
        n: The number of test images.
        p_better: One-sided exact McNemar p-value. It is small if the model is better.
        p_worse: The same for the other side. It is small if the model is worse.
        p_not_worse: A p-value that is small if the model isn't worse by more than the margin.
        p_worse_by_class: A p-value for each class, small if the model is worse there. It is corrected for ten looks.
        images_needed: How many test images would decide, if the observed difference is the true one. None if no number
            would.
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
    """The gate's decision about a model, and each reason."""

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
        mlflow_run_id: The MLflow run with its parameters, metrics and files.
        model: The registered model.
    """

    name: str
    version: int
    mlflow_run_id: str
    model: Model


class Lineage(Record):
    """What a version was made from, and its figures, so that it can be made again. This is a tag of the version.

    A field that is added later needs a default, because versions that were registered before don't have it.

    Attributes:
        revision: The commit of the code.
        patch: SHA-256 of the patch of uncommitted changes, which is a file of the version's MLflow run. None if there
            were none.
        parameters: All parameters of train.
        dataset: `Dataset` as JSON. It may name files that don't exist any more.
        n_train: Number of images that the model was trained on.
        n_validation: Number of images held out of the training data.
        code: Digest by module that train and evaluate depend on.
        libraries: Version by library that can change their results, including Python.
        arithmetic: Keras's dtype policy in the fit.
        processor: The processor of the fit.
        weights_digest: The resulting model.
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
        at: When the alias moved, in UTC.
        by: Who or what moved it: a flow run, or a person at the command line.
        alias: The alias that moved.
        before: The version that had the alias before. None if there was none.
        after: The version that has the alias now.
        why: The reason, in words.
        verdict: The gate's decision behind the move. None if a person decided.
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
        version: The version of the model.
        created: Whether this run registered it. False if it was registered before.
        champion_number: The number of the champion's version after this run, if there is one.
        previous_champion_number: The number of the champion's version before this run, if there was one.
        withheld: Why a person replaced this version as champion, if the gate would promote it again.
    """

    version: Version
    created: bool
    champion_number: int | None
    previous_champion_number: int | None
    withheld: str | None = None
