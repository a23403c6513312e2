"""How the cost of ingest, validate, evaluate and report grows with the data: 1, 2, 5 and 10 shifted copies of MNIST.

`python -m benchmarks.growth FOLDER TIMES` makes one measurement in its own process. FOLDER has the model.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.records.model import Training
from benchmarks.measure import Cost, Row, alternate, measure
from tasks.data.sources import package_file, read_package
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.report import draw_report
from tasks.robustness import measure_robustness
from tasks.train import train_model
from tasks.validate import ValidateParameters, validate_data

TIMES = (1, 2, 5, 10)
N_SMALL = 2_000


def growth(repeats: int) -> list[Row]:
    """The cost of each multiple of MNIST, with the CPU seconds of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        measure("-m", "benchmarks.growth", folder, "prepare", MNIST_HOME=f"{folder}/home")

        def times(k: int) -> Callable[[], Cost]:
            return lambda: measure("-m", "benchmarks.growth", folder, str(k), MNIST_HOME=f"{folder}/home")

        return alternate({f"{k} × MNIST": times(k) for k in TIMES}, repeats)


def shifted(k: int) -> dict[str, np.ndarray[Any, Any]]:
    """MNIST and copies of it, k in all, each shifted differently by at most two pixels."""
    arrays = read_package(package_file())
    shifts = list(islice(sorted(product(range(-2, 3), repeat=2), key=lambda xy: max(map(abs, xy))), k))
    return {
        name: np.concatenate([np.roll(array, shift, axis=(1, 2)) if array.ndim == 3 else array for shift in shifts])
        for name, array in arrays.items()
    }


def prepare(folder: Path) -> None:
    """Write the data sets, also a small one, and the records of a model that was trained on MNIST for an epoch."""
    for k in TIMES:
        np.savez(folder / f"{k}.npz", allow_pickle=False, **shifted(k))
    np.savez(folder / "small.npz", allow_pickle=False, **{name: array[:N_SMALL] for name, array in shifted(1).items()})
    training = train_model.fn(ingest_data.fn(IngestParameters()), TrainParameters(epochs=1))
    (folder / "training.json").write_text(training.model_dump_json())


def one(folder: Path, k: int) -> dict[str, float]:
    """The CPU seconds of each step on k times MNIST. A small data set comes first, so that imports don't count."""
    seconds: dict[str, float] = {}
    measured = steps(folder, str(k), 60_000 * k, 10_000 * k)
    for step in steps(folder, "small", N_SMALL, N_SMALL):
        started = time.process_time()
        next(measured)
        seconds[step] = time.process_time() - started
    return seconds


def steps(folder: Path, data: str, n_train: int, n_test: int) -> Iterator[str]:
    """Run the steps on a data set of the folder. Yields the name of each step when it is done."""
    dataset = ingest_data.fn(IngestParameters(source="path", path=folder / f"{data}.npz"))
    yield "ingest"
    # The bounds fit MNIST itself. Shifted digits are nearer to the border, and farther from the class means.
    bounds = ValidateParameters(
        n_train=n_train, n_test=n_test, blank_border_min=0, agreement_min=0.5, mnist_agreement_min=0.5
    )
    validate_data.fn(dataset, bounds)
    yield "validate"
    training = Training.model_validate_json((folder / "training.json").read_text())
    evaluation = evaluate_model.fn(training.model, dataset)
    yield "evaluate"
    robustness = measure_robustness.fn(training.model, dataset)
    yield "robustness"
    explanation = explain_errors.fn(training.model, dataset, evaluation, None)
    yield "explain"
    draw_report.fn(dataset, training, evaluation, robustness, explanation, None, None)
    yield "report"


if __name__ == "__main__":
    if sys.argv[2] == "prepare":
        prepare(Path(sys.argv[1]))
    else:
        sys.stdout.write(json.dumps(one(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
