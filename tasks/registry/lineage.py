"""Lineage: what a version was made from, so that it can be made again."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import ReproduceError
from artifacts.records.base import Key
from artifacts.records.data import Dataset
from artifacts.records.evaluation import Evaluation
from artifacts.records.model import Training
from artifacts.records.release import Lineage
from tasks.running.code import digest_code
from tasks.running.logs import run_logger
from tasks.running.revision import working_tree

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# Tags of a version: its `Lineage` as JSON, or why the version can't be reproduced.
LINEAGE, NOT_REPRODUCIBLE = "lineage", "not_reproducible"
# The file in the version's MLflow run with the uncommitted changes of its code, if there were any.
PATCH = "uncommitted.patch"
# Much more than a person edits by hand. A data set among the changed files could have any size.
MAX_PATCH_BYTES = 5_000_000


def identity(dataset: Dataset, training: Training) -> dict[str, str]:
    """The tags that identify a version: the digests of its weights, its data, and the code that trained it."""
    key = training.origin.key if training.origin else None
    return {
        "weights_digest": training.model.weights_digest,
        "data_digest": dataset.digest,
        "code_digest": digest_code(key.code if key else {}),  # there is no code if the task was called outside of a run
    }


def lineage_tags(dataset: Dataset, training: Training, evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """The tag from which `make reproduce` makes the version again, or the tag that says why it can't.

    The revision is that of this run's code, even if the training is reused: it is reused only if its code is the same.

    Args:
        dataset: The data that the model was trained on.
        training: How it was trained.
        evaluation: Its figures.
        folder: The folder that receives the patch of uncommitted changes, for the version's MLflow run.
    """
    tree = working_tree()
    trained, evaluated = (record.origin.key if record.origin else None for record in (training, evaluation))
    if trained is None or evaluated is None:
        obstacle = "it was trained by a call outside of a flow run, so its parameters weren't kept"
    elif tree.revision is None:
        obstacle = "its code isn't in a git repository"
    elif len(tree.patch) > MAX_PATCH_BYTES:
        obstacle = f"its uncommitted changes were {len(tree.patch):,} bytes; at most {MAX_PATCH_BYTES:,} are kept"
    else:
        made_from = Lineage(
            revision=tree.revision,
            patch=hashlib.sha256(tree.patch).hexdigest() if tree.patch else None,
            parameters={
                name.removeprefix("train."): json.loads(value)
                for name, value in trained.inputs.items()
                if name.startswith("train.")
            },
            **describe_making(dataset, training, evaluation, trained, evaluated),
        )
        if tree.patch:
            (folder / PATCH).write_bytes(tree.patch)
        return {LINEAGE: made_from.model_dump_json()}
    run_logger().warning(f"the new version can't be made again by `make reproduce`: {obstacle}")
    return {NOT_REPRODUCIBLE: obstacle}


def describe_making(
    dataset: Dataset, training: Training, evaluation: Evaluation, trained: Key, evaluated: Key
) -> dict[str, Any]:
    """The fields of `Lineage` that say what was made, and from what; without revision, patch and parameters.

    Args:
        dataset: The data.
        training: The training.
        evaluation: The evaluation of its model.
        trained: The key of the training, which has its code and libraries.
        evaluated: The key of the evaluation.
    """
    return {
        "dataset": dataset.model_dump(mode="json", exclude={"origin"}),
        "n_train": training.n_train,
        "n_validation": training.n_validation,
        "code": trained.code | evaluated.code,
        "libraries": trained.libraries | evaluated.libraries,
        "arithmetic": training.precision,
        "processor": training.processor,
        "weights_digest": training.model.weights_digest,
        "metrics": evaluation.metrics(),
    }


def read_lineage(found: "ModelVersion") -> Lineage:
    """Read what a version was made from.

    Raises:
        ReproduceError: Raised if the registry has no lineage of the version, or says why it can't be made again.
    """
    number = found.version
    if NOT_REPRODUCIBLE in found.tags:
        raise ReproduceError(f"version {number} can't be made again: {found.tags[NOT_REPRODUCIBLE]}")
    if LINEAGE not in found.tags:
        raise ReproduceError(f"version {number} can't be made again: it was registered before lineage was kept")
    return Lineage.model_validate_json(found.tags[LINEAGE])


def dataset_of(version: "ModelVersion") -> dict[str, Any]:
    """The version's data set, as the JSON of `Dataset`. Empty if the version has no lineage."""
    return dict(json.loads(version.tags.get(LINEAGE, "{}")).get("dataset", {}))
