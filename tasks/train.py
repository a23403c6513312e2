"""Train: fit a network to the training images, less a held-out validation split. It never reads the test set."""

import time
from typing import TYPE_CHECKING

import numpy as np
from prefect import task

from artifacts.dataset import Split, load_train
from artifacts.errors import DataError
from artifacts.records.data import Dataset
from artifacts.records.model import Model, Training
from artifacts.store import put
from tasks.model.calibration import divide_logits, fit_temperature
from tasks.model.checkpoint import Checkpoint, forget_checkpoint
from tasks.model.fit import build, fit
from tasks.model.networks import average_shifts
from tasks.model.processor import describe_processor
from tasks.model.recipe import TrainParameters, dtype_policy
from tasks.model.saved import digest_weights, import_keras
from tasks.running.cache import StepCache, origin
from tasks.running.logs import Progress

if TYPE_CHECKING:
    import keras


def _arithmetic(dataset: Dataset, parameters: TrainParameters) -> dict[str, str]:
    del dataset
    return {"arithmetic": dtype_policy(parameters)}


@task(
    name="train",
    cache_policy=StepCache(libraries=("keras", "numpy", "scikit-learn", "scipy", "tensorflow"), reads=_arithmetic),
    on_completion=[forget_checkpoint],
)
def train_model(dataset: Dataset, parameters: TrainParameters) -> Training:
    """Fit the network. The same parameters give the same weights digest on the same kind of machine.

    A training whose process died continues from its last validation, and ends with the same weights.

    Raises:
        DataError: Raised if there are too few training images for a validation split with all classes.
        ModelError: Raised if the training diverges.
    """
    keras = import_keras()
    train, validation = hold_out(load_train(dataset), parameters.validation_share)
    keras.utils.clear_session()  # Keras numbers layers per process: those of a second model would have other names
    precision = dtype_policy(parameters)
    started, cpu_started = time.perf_counter(), time.process_time()
    fitted = build(parameters.network, precision, parameters.seed)
    made = origin()
    key = made.key.digest if made and made.key else None
    progress = Progress(parameters.teachers + 1)
    teachers = fit_teachers(train, validation, parameters, key, progress)
    history = fit(fitted, train, validation, parameters, Checkpoint(key), progress, teachers)
    fit_seconds, fit_cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started

    # A user who loads the model gets plain float32 arithmetic. The weights are float32 in both policies.
    model = build(parameters.network, "float32", parameters.seed)
    model.set_weights(fitted.get_weights())
    if parameters.average_shifts:
        model = average_shifts(model)
    temperature = fit_temperature(validation.y, model.predict(validation.x, batch_size=1000, verbose=0))
    divide_logits(model, temperature)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return Training(
        model=Model(
            weights_digest=digest_weights(model),
            network=parameters.network,
            n_parameters=model.count_params(),
            keras=put(".keras", model.save),
            h5=put(".h5", model.save),
        ),
        history=history,
        n_train=len(train.y),
        n_validation=len(validation.y),
        precision=precision,
        temperature=temperature,
        processor=describe_processor(),
        fit_seconds=fit_seconds,
        fit_cpu_seconds=fit_cpu_seconds,
        origin=origin(),
    )


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Hold out a share of the images to validate on: the same share of each class, and the same images in every run.

    Returns:
        The images to train on, and the validation split.

    Raises:
        DataError: Raised if there are too few images to hold out some of each class.
    """
    from sklearn.model_selection import train_test_split

    try:
        train, validation = train_test_split(
            np.arange(len(split.y)), test_size=share, stratify=split.y, random_state=0, shuffle=True
        )
    except ValueError as error:
        raise DataError(
            f"no {share:.0%} of the {len(split.y)} training images can be held out to validate on: {error}; "
            "give more images, or another --train.validation_share"
        ) from error
    return Split(split.x[train], split.y[train]), Split(split.x[validation], split.y[validation])


def fit_teachers(
    train: Split, validation: Split, parameters: TrainParameters, key: str | None, progress: Progress
) -> "list[keras.Model]":
    """Fit the networks that teach the final one. Each of them has a checkpoint under the key.

    A network that learns the mean answers of several networks is distillation, as in Hinton et al., "Distilling the
    Knowledge in a Neural Network", arXiv:1503.02531. Here the images are changed at random, so no label is exact.
    """
    teachers = []
    for n, seed in enumerate(np.random.SeedSequence(parameters.seed).generate_state(parameters.teachers).tolist()):
        by_labels = parameters.model_copy(update={"teachers": 0, "seed": seed})
        teachers.append(build(parameters.network, dtype_policy(parameters), seed))
        fit(teachers[-1], train, validation, by_labels, Checkpoint(key, f"teacher-{n}"), progress)
    return teachers
