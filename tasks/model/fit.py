"""The fit: build a network, and train it batch by batch."""

import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from artifacts.dataset import Labels, Split
from artifacts.errors import ModelError
from artifacts.records.data import N_CLASSES
from artifacts.records.model import Epoch
from tasks.model.checkpoint import Checkpoint
from tasks.model.networks import NETWORKS
from tasks.model.recipe import TrainParameters
from tasks.running.logs import Progress, run_logger

if TYPE_CHECKING:
    import keras


def build(network: str, policy: str, seed: int) -> "keras.Model":
    """Build a network whose layers compute by a dtype policy. Its weights are float32 in any case.

    The seed decides the first weights and the dropout, as `keras.utils.set_random_seed` would. That function isn't
    used, because it seeds Python's generator of the whole process, and Prefect's threads draw from it too.
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


class Schedule(NamedTuple):
    """How a training is divided into parts. A part ends with a validation; Keras calls it an epoch.

    Attributes:
        n_parts: The number of parts.
        steps_per_part: The number of steps in a part.
    """

    n_parts: int
    steps_per_part: int

    @property
    def n_steps(self) -> int:
        """The number of steps of the whole training."""
        return self.n_parts * self.steps_per_part


def schedule(n_train: int, parameters: TrainParameters) -> Schedule:
    """Divide a training on `n_train` images into parts."""
    n_steps = max(1, round(max(1, n_train // parameters.batch_size) * parameters.epochs))
    n_parts = min(max(1, round(parameters.validations_per_epoch * parameters.epochs)), n_steps)
    return Schedule(n_parts, n_steps // n_parts)


def fit(
    model: "keras.Model",
    train: Split,
    validation: Split,
    parameters: TrainParameters,
    checkpoint: Checkpoint,
    progress: Progress,
    teachers: "Sequence[keras.Model]" = (),
) -> tuple[Epoch, ...]:
    """Fit the model in place. If there is a checkpoint, continue from it.

    Args:
        model: The network. It is compiled here.
        train: The images and labels to learn.
        validation: The images and labels to validate on.
        parameters: The recipe.
        checkpoint: Keeps the state after each validation.
        progress: Shows the progress of the step. This fit is the step's next part.
        teachers: Networks whose mean answers are learnt instead of the labels.

    Returns:
        The history, one record per validation.

    Raises:
        ModelError: Raised at the first validation after the training has diverged. No checkpoint of that state is kept.
    """
    import keras

    plan = schedule(len(train.y), parameters)
    log, which = run_logger(), progress.begin("network")
    model.compile(
        adam(parameters, learning_rate(parameters, plan.n_steps)),
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy()],
    )
    log.info(
        f"{which}training {parameters.network}, {model.count_params():,} parameters, on {len(train.y):,} images "
        f"for {parameters.epochs:g} {'epoch' if parameters.epochs == 1 else 'epochs'} in {model.dtype_policy.name}"
        + (", by its teachers' mean answers" if teachers else "")
    )
    history = list(checkpoint.restore(model))
    if history:
        log.info(f"{which}going on from epoch {history[-1].epoch:.2f}, where an earlier process ended")
    if len(history) < plan.n_parts:
        model.fit(
            batches(train, parameters, teachers, skip=len(history) * plan.steps_per_part),
            initial_epoch=len(history),
            epochs=plan.n_parts,
            steps_per_epoch=plan.steps_per_part,
            validation_data=(validation.x, one_hot(validation.y)),
            validation_batch_size=500,
            callbacks=[keep_history(history, plan, parameters, checkpoint, progress, which)],
            shuffle=False,  # `batches` shuffles
            verbose=0,
        )
    return tuple(history)


def keep_history(
    history: list[Epoch],
    plan: Schedule,
    parameters: TrainParameters,
    checkpoint: Checkpoint,
    progress: Progress,
    which: str,
) -> "keras.callbacks.Callback":
    """A callback that extends the history and the checkpoint at each validation, and shows the progress.

    Args:
        history: The history so far. The callback extends it.
        plan: How the training is divided.
        parameters: The recipe.
        checkpoint: Keeps the state after each validation.
        progress: Shows the progress of the step.
        which: The beginning of each message, e.g. ``network 2 of 4: ``.
    """
    import keras

    begun = len(history) / plan.n_parts

    class History(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            del logs
            self.began = self.started = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
            done = (len(history) * plan.steps_per_part + batch + 1) / plan.n_steps
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
                    "the loss is not a number; choose a lower learning rate"
                )
            now = time.perf_counter()
            record = Epoch(
                epoch=(epoch + 1) / plan.n_parts * parameters.epochs,
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
            run_logger().info(f"{which}{describe_last(history, plan, parameters)}")

    return History()


def describe_last(history: Sequence[Epoch], plan: Schedule, parameters: TrainParameters) -> str:
    """The last record of the history in words, and about how many seconds are left."""
    last = history[-1]
    left = (plan.n_parts - len(history)) * sum(past.seconds for past in history) / len(history)
    return (
        f"epoch {last.epoch:.2f} of {parameters.epochs:g}: loss {last.loss:.4f}, accuracy {last.accuracy:.4f}, "
        f"val_loss {last.val_loss:.4f}, val_accuracy {last.val_accuracy:.4f}; about {left:.0f} s left"
    )


def learning_rate(parameters: TrainParameters, n_steps: int) -> Any:
    """The learning rate: a number, or Keras's schedule of one cycle over `n_steps`."""
    import keras

    class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return parameters.learning_rate * one_cycle(step, n_steps)

    return OneCycle() if parameters.schedule == "one-cycle" else parameters.learning_rate


def adam(parameters: TrainParameters, learning_rate: Any) -> "keras.optimizers.Adam":
    """Keras's Adam by TensorFlow's own kernel, which passes over the weights once instead of a dozen times."""
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
    """The batches of a training in their order. Only the seed and the epoch decide the order.

    Args:
        train: The images and labels.
        parameters: The batch size, the epochs, the seed, the changes and the smoothing are used.
        teachers: Networks whose mean answers to the changed images replace the labels.
        skip: The number of batches to leave out at the beginning.

    Returns:
        A `tf.data.Dataset` of images, float32 of shape ``(batch_size, height, width, 1)``, and targets, float32 of
        shape ``(batch_size, 10)``. The images are in memory once, and each batch gathers its own.
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
        strength: The factor for these bounds.
        seed: Two integers that decide the changes.
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
    # Each pixel comes from (a x + b y + e, c x + d y + f). Without the shift, the middle stays where it is.
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

    It rises from a tenth to the peak in the first fifth of the steps, and falls to a hundredth at the end. After Smith
    and Topin, "Super-Convergence", arXiv:1708.07120.
    """
    import keras

    position = keras.ops.cast(step, "float32") / max(n_steps - 1, 1)
    return keras.ops.minimum(0.1 + 0.9 * position / 0.2, 1 - 0.99 * (position - 0.2) / 0.8)
