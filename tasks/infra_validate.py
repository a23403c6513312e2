"""Infra-validate: prove that the saved file works outside of this project, before the model is registered."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prefect import task

from artifacts.dataset import Images, load_test, read_array
from artifacts.errors import ModelError
from artifacts.records.data import Dataset
from artifacts.records.evaluation import Evaluation, InfraValidation
from artifacts.records.model import Model
from tasks.model import probe
from tasks.running.cache import StepCache, origin

# On two machines, the float32 sums of this network differ by about 1e-6.
TOLERANCE = 1e-4
N_IMAGES = 1000


@task(name="infra-validate", cache_policy=StepCache(libraries=("keras", "numpy", "tensorflow")))
def validate_infra(model: Model, dataset: Dataset, evaluation: Evaluation) -> InfraValidation:
    """Load the stored model in a fresh interpreter, without this project's code and without a network, and predict.

    Raises:
        ModelError: Raised if the model can't be loaded there, or its predictions differ from the evaluation's.
    """
    return try_model(model, load_test(dataset).x[:N_IMAGES], read_array(evaluation.probabilities)[:N_IMAGES])


def try_model(model: Model, images: Images, expected: npt.NDArray[np.float32]) -> InfraValidation:
    """Load the model in a fresh interpreter, predict `images`, and compare the probabilities with those expected.

    Raises:
        ModelError: Raised if the model can't be loaded there, or its predictions differ.
        StoreError: Raised if the model's file is missing or was altered.
    """
    model.keras.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        images_file, probabilities_file = Path(folder) / "images.npy", Path(folder) / "probabilities.npy"
        np.save(images_file, images)
        files = (probe.__file__, model.keras.path, images_file, probabilities_file)
        # The new process gets only the path of programs: the model must not need any other variable of this process.
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-I", *map(str, files)],
            cwd=folder,
            env=environment | {"HOME": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"the model {model.keras.path} can't be loaded in a fresh interpreter: {reason}")
        found = np.load(probabilities_file, allow_pickle=False)
    deviation = float(np.abs(found - expected).max())
    if not deviation <= TOLERANCE:
        raise ModelError(
            f"the model {model.keras.path} predicts something else in a fresh interpreter: a probability differs by "
            f"{deviation:.2g}, at most {TOLERANCE:g} is tolerated; don't use it, and run again with --refresh"
        )
    return InfraValidation(
        n_images=len(images),
        largest_deviation=deviation,
        size=model.keras.size,
        **json.loads(done.stdout.splitlines()[-1]),
        origin=origin(),
    )
