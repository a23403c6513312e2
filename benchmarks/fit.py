"""Only train and evaluate, in a real flow: the fit as in `make train`, with checkpoints and progress.

`python -m benchmarks.fit '{"epochs": 1}'`: the argument is JSON of `TrainParameters`.
"""

import json
import sys

from service.environment import prepare, server

prepare()

from prefect import flow

from tasks.evaluate import evaluate_model
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.running.cache import SERIALIZER
from tasks.train import train_model


@flow(result_serializer=SERIALIZER)
def fit(parameters: TrainParameters) -> dict[str, float]:
    """Train, and return the wall and CPU seconds of the fit and how many validation and test images are wrong."""
    dataset = ingest_data(IngestParameters())
    training = train_model(dataset, parameters)
    evaluation = evaluate_model(training.model, dataset)
    return {
        "fit": training.fit_seconds,
        "fit_cpu": training.fit_cpu_seconds,
        "val_wrong": round((1 - training.history[-1].val_accuracy) * training.n_validation),
        "n_wrong": evaluation.n_wrong,
    }


if __name__ == "__main__":
    with server() as ready:
        if ready:
            ready()
        told = fit(TrainParameters.model_validate_json(sys.argv[1]))
    sys.stdout.write(json.dumps(told) + "\n")
