"""What a version was made from, and making it again: `make reproduce` runs this in a checkout of its own revision.

It runs as ``python -m tasks.rebuild REGISTERED.json FOLDER [NPZ]``. The `make reproduce` of any later revision calls it
so, and reads its ``FOLDER/rebuilt.json``: both have to stay as they are.
"""

import logging
import sys
from pathlib import Path
from typing import Any, cast

from artifacts.records import Dataset, Evaluation, Lineage, Training
from tasks.caching import StepCache, code_of, python_and_libraries
from tasks.evaluate import evaluate_model
from tasks.ingest import IngestParameters, ingest_data
from tasks.train import TrainParameters, train_model


def made_by_this_process(dataset: Dataset, training: Training, evaluation: Evaluation) -> dict[str, Any]:
    """The fields of `Lineage` that tell what was made, and from what; all but where the code came from.

    A reused training counts: it is reused only if code and libraries are those of this process.
    """
    libraries = {
        name for step in (train_model, evaluate_model) for name in cast(StepCache, step.cache_policy).libraries
    }
    return {
        "dataset": dataset.model_dump(mode="json", exclude={"origin"}),
        "n_train": training.n_train,
        "n_validation": training.n_validation,
        "code": code_of("tasks.train") | code_of("tasks.evaluate"),
        "libraries": python_and_libraries(sorted(libraries)),
        "arithmetic": training.precision,
        "processor": training.processor,
        "weights_digest": training.model.weights_digest,
        "metrics": {
            name: getattr(evaluation, name)
            for name in ("accuracy", "loss", "n_wrong", "n_test", "expected_calibration_error")
        },
    }


def rebuild(registered: Lineage, folder: Path, npz: Path | None) -> None:
    """Ingest, train and evaluate as the version's run did, and leave ``rebuilt.json`` and the model in `folder`.

    Args:
        registered: What the version was made from.
        folder: On the file system of this checkout's store.
        npz: The data; none to take MNIST from its package.
    """
    dataset = ingest_data.fn(IngestParameters(source="path" if npz else "package", path=npz))
    training = train_model.fn(dataset, TrainParameters.model_validate(registered.parameters))
    evaluation = evaluate_model.fn(training.model, dataset)
    training.model.keras.link_to(folder / "model.keras")
    evaluation.probabilities.link_to(folder / "probabilities.npy")
    rebuilt = registered.model_copy(update=made_by_this_process(dataset, training, evaluation))
    (folder / "rebuilt.json").write_text(rebuilt.model_dump_json(indent=2), encoding="utf-8")


if __name__ == "__main__":
    logging.getLogger("mnist").setLevel(logging.INFO)
    file, folder, *data = map(Path, sys.argv[1:])
    rebuild(Lineage.model_validate_json(file.read_text(encoding="utf-8")), folder, data[0] if data else None)
