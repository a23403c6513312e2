"""Rebuild: make a version again. `make reproduce` runs this module in a checkout of the version's own revision.

The call is ``python -m tasks.operations.rebuild REGISTERED.json FOLDER [NPZ]`` (in version 0.1.0: ``tasks.rebuild``).
Every later revision's `make reproduce` makes this call and reads ``FOLDER/rebuilt.json``, so neither may change.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from prefect import Task

from artifacts.records.base import Key
from artifacts.records.release import Lineage
from tasks.evaluate import evaluate_model
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.registry.lineage import describe_making
from tasks.running.cache import StepCache
from tasks.train import train_model


def rebuild(registered: Lineage, folder: Path, npz: Path | None) -> None:
    """Ingest, train and evaluate as the version's run did, and put ``rebuilt.json`` and the model into `folder`.

    Args:
        registered: The lineage of the version.
        folder: The folder for the results, on the same file system as this checkout's store.
        npz: The data. None means MNIST from its package.
    """
    parameters = TrainParameters.model_validate(registered.parameters)
    dataset = ingest_data.fn(IngestParameters(source="path" if npz else "package", path=npz))
    training = train_model.fn(dataset, parameters)
    evaluation = evaluate_model.fn(training.model, dataset)
    training.model.keras.link_to(folder / "model.keras")
    evaluation.probabilities.link_to(folder / "probabilities.npy")
    trained = key_of(train_model, dataset=dataset, parameters=parameters)
    evaluated = key_of(evaluate_model, model=training.model, dataset=dataset)
    made = describe_making(dataset, training, evaluation, trained, evaluated)
    rebuilt = registered.model_copy(update=made)
    (folder / "rebuilt.json").write_text(rebuilt.model_dump_json(indent=2), encoding="utf-8")


def key_of(step: Task[..., Any], **inputs: Any) -> Key:
    """The key that a step has in a run."""
    policy = step.cache_policy
    key = policy.key(step.name, step.fn.__module__, inputs) if isinstance(policy, StepCache) else None
    if key is None:
        raise TypeError(f"{step.name} has no key")
    return key


if __name__ == "__main__":
    logging.getLogger("mnist").setLevel(logging.INFO)
    file, folder, *data = map(Path, sys.argv[1:])
    rebuild(Lineage.model_validate_json(file.read_text(encoding="utf-8")), folder, data[0] if data else None)
