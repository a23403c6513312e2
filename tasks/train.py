"""Train: fit a network to the training split, with a validation split held out of it; the test set is never read."""

import hashlib
import math
import os
import platform
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from prefect import task
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from artifacts.dataset import Labels, Split, load_train
from artifacts.errors import DataError, ModelError
from artifacts.records import N_CLASSES, Dataset, Epoch, Model, Training
from artifacts.store import put
from tasks.caching import StepCache, origin
from tasks.checkpoint import Checkpoint, forget_checkpoint
from tasks.logs import Progress, run_logger
from tasks.networks import NETWORKS, average_shifts, import_keras

if TYPE_CHECKING:
    import keras


def _known_network(name: str) -> str:
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(NETWORKS)}")
    return name


# Where a preset says nothing, it is as `fast`, whose values are the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "seed": {
        "epochs": 5,
        "batch_size": 32,
        "schedule": "constant",
        "learning_rate": 1e-3,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "label_smoothing": 0.0,
        "validations_per_epoch": 1,
        "precision": "float32",
    },
    "compact": {
        "network": "compact",
        "epochs": 12,
        "batch_size": 128,
        "learning_rate": 6e-3,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "augmentation": 1.0,
        "validations_per_epoch": 1,
    },
}
PRESETS["distilled"] = PRESETS["compact"] | {"teachers": 3, "average_shifts": True, "validation_share": 1 / 30}


def _without_defaults(schema: dict[str, Any]) -> None:
    # A form sends the defaults that it shows, and what is sent outweighs the preset.
    for name, field in schema["properties"].items():
        if name != "preset":
            field.pop("default", None)


class TrainParameters(BaseModel):
    """What is trained, and how: a preset, and what is to be otherwise. benchmarks/LOG.md tells how they came about."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_without_defaults)

    preset: Literal["fast", "seed", "compact", "distilled"] = Field(
        default="fast", description="The recipe, which fills in what isn't given."
    )
    network: Annotated[str, AfterValidator(_known_network)] = Field(
        default="baseline",
        description="The network's name, a function of tasks/networks.py.",
        json_schema_extra={"enum": list(NETWORKS)},
    )
    epochs: float = Field(
        default=1.125, ge=0.01, le=1000, description="Passes over the training images; a part of one will do."
    )
    batch_size: int = Field(default=192, ge=1, le=10_000, description="Images a step; a rest of an epoch is left out.")
    schedule: Literal["one-cycle", "constant"] = Field(
        default="one-cycle", description="The learning rate rises to a peak and falls to nearly nothing, or stays."
    )
    learning_rate: float = Field(default=8e-3, gt=0, le=1, description="Adam's learning rate, at its peak.")
    beta_1: float = Field(default=0.8, ge=0, lt=1, description="How much Adam's mean of the gradients remembers.")
    beta_2: float = Field(default=0.95, ge=0, lt=1, description="How much its mean of their squares remembers.")
    label_smoothing: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of a label's weight that is spread over all classes; teachers' answers stay as they are.",
    )
    augmentation: float = Field(
        default=0.0,
        ge=0,
        le=3,
        description="How much images are changed at random: 1 turns them by up to 10 degrees, and scales, slants and "
        "shifts them as much as people do; 0 leaves them as they are.",
    )
    teachers: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Networks that are trained first; the network then learns their mean answers, not the labels.",
    )
    average_shifts: bool = Field(
        default=False,
        description="Whether the finished network averages what it sees of an image and of its shifts by a pixel, for "
        "five times the arithmetic.",
    )
    validations_per_epoch: int = Field(
        default=2, ge=1, le=100, description="How often in an epoch the validation split is looked at."
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Arithmetic of the fit; `auto`: bfloat16 where the processor has it."
    )
    validation_share: float = Field(
        default=1 / 12, gt=0, lt=1, description="Share of the training images held out to validate on."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the weights and of all that is random.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        return PRESETS.get(str(given.get("preset")), {}) | given if isinstance(given, dict) else given


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16, by Linux's word; false where there is no such word."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def describe_processor() -> str:
    """The processor by its kind and the cores that this process may use: both decide in which order sums are taken."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    kind = re.findall(r"^(?:model name|cpu family|model|CPU implementer|CPU part)\s*: (.+)$", first, re.MULTILINE)
    return f"{' '.join([platform.machine(), *kind])}, {len(os.sched_getaffinity(0))} cores"


def dtype_policy(parameters: TrainParameters) -> str:
    """Keras's name of the fit's arithmetic: ``mixed_bfloat16`` or ``float32``."""
    if parameters.precision == "auto":
        return "mixed_bfloat16" if has_bfloat16() else "float32"
    return "mixed_bfloat16" if parameters.precision == "bfloat16" else "float32"


def _arithmetic(dataset: Dataset, parameters: TrainParameters) -> dict[str, str]:
    del dataset
    return {"arithmetic": dtype_policy(parameters)}


@task(
    name="train",
    cache_policy=StepCache(libraries=("keras", "numpy", "scikit-learn", "scipy", "tensorflow"), reads=_arithmetic),
    on_completion=[forget_checkpoint],
)
def train_model(dataset: Dataset, parameters: TrainParameters) -> Training:
    """Fit the network; the same parameters give the same weights digest on the same kind of machine.

    A training whose process died goes on from its last validation, to the same weights.

    Raises:
        DataError: Raised if the training images are too few to hold a validation split of all classes out of them.
        ModelError: Raised if the training diverges.
    """
    keras = import_keras()
    train, validation = hold_out(load_train(dataset), parameters.validation_share)
    keras.utils.clear_session()  # layers are numbered by process: the second model's would have other names
    precision = dtype_policy(parameters)
    started, cpu_started = time.perf_counter(), time.process_time()
    fitted = build(parameters.network, precision, parameters.seed)
    made = origin()
    key = made.key.digest if made and made.key else None
    progress = Progress(parameters.teachers + 1)
    teachers = fit_teachers(train, validation, parameters, key, progress)
    history = fit(fitted, train, validation, parameters, Checkpoint(key), progress, teachers)
    fit_seconds, fit_cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started

    # Whoever loads the model gets plain float32 arithmetic; the weights are float32 in either policy.
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
    """Split off a share of the images, the same in each class and in every run, to validate on.

    Returns:
        What remains to train on, and the validation split.

    Raises:
        DataError: Raised if there are too few images to hold some of each class out.
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


def build(network: str, policy: str, seed: int) -> "keras.Model":
    """Build a network whose layers compute by a dtype policy; its weights are float32 in any case.

    Its first weights and what it drops out are functions of the seed: those that `keras.utils.set_random_seed` gives.
    That seeds Python's one generator for the process, from which Prefect's threads draw as well, at any moment.
    """
    import keras

    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = NETWORKS[network]()
    finally:
        keras.config.set_dtype_policy(default)
    seeds = random.Random(seed)  # noqa: S311 - they are to be the same in every run
    return type(model).from_config(_fill_in_seeds(model.get_config(), seeds))


def _fill_in_seeds(config: Any, seeds: random.Random) -> Any:
    if isinstance(config, list):
        return [_fill_in_seeds(item, seeds) for item in config]
    if isinstance(config, dict):
        return {
            name: seeds.randint(1, 10**9) if name == "seed" and value is None else _fill_in_seeds(value, seeds)
            for name, value in config.items()
        }
    return config


def fit_teachers(
    train: Split, validation: Split, parameters: TrainParameters, key: str | None, progress: Progress
) -> "list[keras.Model]":
    """Fit the networks whose answers are to be learnt, by the labels; each has a checkpoint under the key.

    Learning the mean answers of several networks is the distillation of Hinton et al., "Distilling the Knowledge in a
    Neural Network", arXiv:1503.02531, here on images that are changed at random, of which no label is exact.
    """
    teachers = []
    for n, seed in enumerate(np.random.SeedSequence(parameters.seed).generate_state(parameters.teachers).tolist()):
        by_labels = parameters.model_copy(update={"teachers": 0, "seed": seed})
        teachers.append(build(parameters.network, dtype_policy(parameters), seed))
        fit(teachers[-1], train, validation, by_labels, Checkpoint(key, f"teacher-{n}"), progress)
    return teachers


def fit(
    model: "keras.Model",
    train: Split,
    validation: Split,
    parameters: TrainParameters,
    checkpoint: Checkpoint,
    progress: Progress,
    teachers: "Sequence[keras.Model]" = (),
) -> tuple[Epoch, ...]:
    """Fit the model in place, from the checkpoint on if there is one.

    Args:
        model: The network; it is compiled here.
        train: What it learns.
        validation: What it is looked at with.
        parameters: The recipe.
        checkpoint: Where the state after each validation is kept.
        progress: Of the step, of which this is the next part.
        teachers: Networks whose mean answers it learns instead of the labels.

    Returns:
        The history, a record each time that the validation split was looked at.

    Raises:
        ModelError: Raised at the first validation after the training has diverged; no checkpoint holds what it became.
    """
    import keras

    n_steps = max(1, round(max(1, len(train.y) // parameters.batch_size) * parameters.epochs))
    n_parts = min(max(1, round(parameters.validations_per_epoch * parameters.epochs)), n_steps)
    steps_per_part = n_steps // n_parts
    log, which = run_logger(), progress.begin("network")
    history: list[Epoch] = []

    class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return parameters.learning_rate * one_cycle(step, n_parts * steps_per_part)

    class History(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            del logs
            self.began = self.started = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
            done = (len(history) * steps_per_part + batch + 1) / (n_parts * steps_per_part)
            left = (time.perf_counter() - self.began) * (1 - done) / (done - begun)
            progress.show(
                done,
                f"{which}epoch {done * parameters.epochs:.2f} of {parameters.epochs:g}, "
                f"accuracy {logs['categorical_accuracy']:.4f}, about {left:.0f} s left",
            )

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs["val_loss"])):
                raise ModelError(
                    f"the training diverged at --train.learning_rate {parameters.learning_rate:g}: "
                    "its loss is no number; lower it"
                )
            now = time.perf_counter()
            record = Epoch(
                epoch=(epoch + 1) / n_parts * parameters.epochs,
                loss=logs["loss"],
                accuracy=logs["categorical_accuracy"],
                val_loss=logs["val_loss"],
                val_accuracy=logs["val_categorical_accuracy"],
                learning_rate=float(self.model.optimizer.learning_rate),
                seconds=now - self.started,
            )
            self.started = now
            history.append(record)
            checkpoint.save(self.model, history)
            left = (n_parts - len(history)) * sum(past.seconds for past in history) / len(history)
            log.info(
                f"{which}epoch {record.epoch:.2f} of {parameters.epochs:g}: loss {record.loss:.4f}, "
                f"accuracy {record.accuracy:.4f}, val_loss {record.val_loss:.4f}, "
                f"val_accuracy {record.val_accuracy:.4f}; about {left:.0f} s left"
            )

    model.compile(
        adam(parameters, OneCycle() if parameters.schedule == "one-cycle" else parameters.learning_rate),
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy()],
    )
    log.info(
        f"{which}training {parameters.network}, {model.count_params():,} parameters, on {len(train.y):,} images "
        f"for {parameters.epochs:g} {'epoch' if parameters.epochs == 1 else 'epochs'} in {model.dtype_policy.name}"
        + (", by its teachers' mean answers" if teachers else "")
    )
    history.extend(checkpoint.restore(model))
    begun = len(history) / n_parts
    if history:
        log.info(f"{which}going on from epoch {history[-1].epoch:.2f}, which an earlier process got to")
    if len(history) == n_parts:
        return tuple(history)
    # Keras calls an epoch what ends with a validation: here that is a part of one.
    model.fit(
        batches(train, parameters, teachers, skip=len(history) * steps_per_part),
        initial_epoch=len(history),
        epochs=n_parts,
        steps_per_epoch=steps_per_part,
        validation_data=(validation.x, one_hot(validation.y)),
        validation_batch_size=500,
        callbacks=[History()],
        shuffle=False,  # `batches` did
        verbose=0,
    )
    return tuple(history)


def adam(parameters: TrainParameters, learning_rate: Any) -> "keras.optimizers.Adam":
    """Keras's Adam, as the kernel that TensorFlow has for it: one pass over the weights instead of a dozen."""
    import keras
    import tensorflow as tf

    class Adam(keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            n = self._get_variable_index(variable)
            step = tf.cast(self.iterations.value + 1, tf.float32)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[n].value.handle,
                v=self._velocities[n].value.handle,
                beta1_power=tf.pow(self.beta_1, step),
                beta2_power=tf.pow(self.beta_2, step),
                lr=learning_rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )

    return Adam(learning_rate, beta_1=parameters.beta_1, beta_2=parameters.beta_2)


def batches(train: Split, parameters: TrainParameters, teachers: "Sequence[keras.Model]" = (), skip: int = 0) -> Any:
    """The batches of a training in their order, which is a function of the seed and the epoch alone.

    Args:
        train: The images and labels.
        parameters: Of these, the batch size, the epochs, the seed, the changes and the smoothing.
        teachers: Networks whose mean answers to the changed images take the place of the labels.
        skip: Batches to leave out at the beginning.

    Returns:
        A `tf.data.Dataset` of images, float32 of shape ``(batch_size, height, width, 1)``, and what is to be learnt,
        float32 of shape ``(batch_size, 10)``. The images lie in memory once, and the batches gather them.
    """
    import tensorflow as tf

    smoothing = parameters.label_smoothing
    labels = one_hot(train.y) * (1 - smoothing) + smoothing / N_CLASSES
    batch_size = min(parameters.batch_size, len(train.y))
    used = len(train.y) // batch_size * batch_size
    order = np.concatenate(
        [
            np.random.default_rng([parameters.seed, epoch]).permutation(len(train.y))[:used]
            for epoch in range(math.ceil(parameters.epochs))
        ]
    )
    x, y = tf.constant(train.x), tf.constant(labels)
    indices = order.reshape(-1, batch_size).astype(np.int32)

    def gather(step: Any, batch: Any) -> Any:
        images = tf.gather(x, batch)
        if parameters.augmentation:
            images = change(images, parameters.augmentation, [parameters.seed, step])
        if teachers:
            return images, tf.add_n([teacher(images, training=False) for teacher in teachers]) / len(teachers)
        return images, tf.gather(y, batch)

    return tf.data.Dataset.from_tensor_slices((np.arange(len(indices))[skip:], indices[skip:])).map(gather).prefetch(2)


def change(images: Any, strength: float, seed: list[Any]) -> Any:
    """Turn, scale, slant and shift each image at random, by up to 10 degrees, 10 %, 0.15 and 2 pixels at strength 1.

    Args:
        images: float32 of shape ``(n, height, width, 1)``.
        strength: What the bounds are multiplied by.
        seed: Two integers, of which the changes are a function.
    """
    import tensorflow as tf

    n, height, width, _ = tf.unstack(tf.shape(images))
    angle, x_scale, y_scale, slant, x_shift, y_shift = tf.unstack(
        strength
        * tf.random.stateless_uniform((6, n), tf.stack([tf.cast(number, tf.int64) for number in seed]), -1, 1)
        * [[math.radians(10)], [0.1], [0.1], [0.15], [2.0], [2.0]]
    )
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b = cos * (1 + x_scale), (cos * slant - sin) * (1 + y_scale)
    c, d = sin * (1 + x_scale), (sin * slant + cos) * (1 + y_scale)
    # Each pixel comes from (a x + b y + e, c x + d y + f); the middle stays where it is, but for the shift.
    x, y = tf.cast(width - 1, tf.float32) / 2, tf.cast(height - 1, tf.float32) / 2
    e, f, zero = x - a * x - b * y + x_shift, y - c * x - d * y + y_shift, tf.zeros(n)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, e, c, d, f, zero, zero], axis=1),
        output_shape=tf.stack([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def one_hot(labels: Labels) -> npt.NDArray[np.float32]:
    """Labels of shape ``(n,)`` as float32 of shape ``(n, 10)``: 1 at the label, else 0."""
    return np.eye(N_CLASSES, dtype=np.float32)[labels]


def one_cycle(step: Any, n_steps: int) -> Any:
    """The learning rate at a step, as a share of its peak.

    It rises from a tenth to the peak in the first fifth of the steps, and falls to a hundredth at the end, after Smith
    and Topin, "Super-Convergence", arXiv:1708.07120.
    """
    import keras

    position = keras.ops.cast(step, "float32") / max(n_steps - 1, 1)
    return keras.ops.minimum(0.1 + 0.9 * position / 0.2, 1 - 0.99 * (position - 0.2) / 0.8)


def fit_temperature(y_true: Labels, probabilities: npt.NDArray[np.float32]) -> float:
    """The number to divide the logits by so that confidence is accuracy on the validation split, in 0.1–10.

    Temperature scaling of Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599: it has the least
    cross-entropy, and changes no prediction.

    Args:
        y_true: Labels of the validation split, of shape ``(n,)``.
        probabilities: The model's softmax outputs for it, of shape ``(n, 10)``.
    """
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature))
        return -float(np.log(np.maximum(scaled[np.arange(len(y_true)), y_true], 1e-30)).mean())

    return math.exp(minimize_scalar(cross_entropy, bounds=(math.log(0.1), math.log(10))).x)


def apply_temperature(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """The probabilities, of shape ``(n, 10)``, that a model's logits divided by the temperature give."""
    from scipy.special import softmax

    scaled: npt.NDArray[np.float64] = softmax(
        np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature, axis=1
    )
    return scaled


def divide_logits(model: "keras.Model", temperature: float) -> None:
    """Divide the last layer's weights by the temperature: whoever loads the model gets calibrated probabilities."""
    last = model.layers[-1]
    last.set_weights([weight / np.float32(temperature) for weight in last.get_weights()])


def digest_weights(model: "keras.Model") -> str:
    """SHA-256 over the type, shape and bytes of each weight, in the model's order; this identifies a model."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        array: npt.NDArray[Any] = np.ascontiguousarray(weight)
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
