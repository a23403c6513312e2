"""The saved model is tried where nothing of this project is; one that fails there goes no further."""

import shutil
import zipfile

import numpy as np
import pytest

from artifacts.errors import ModelError
from artifacts.store import put
from tasks.infra_validate import validate_infra


def test_a_sound_model_is_measured(infra, training):
    assert infra.n_images == 100
    assert infra.largest_deviation <= 1e-4
    assert infra.size == training.model.keras.size
    assert 0 < infra.seconds_for_1 < infra.load_seconds + 10
    assert infra.peak_bytes > 50_000_000


def test_a_model_that_predicts_otherwise_is_refused(training, dataset, evaluation):
    wrong = put(".npy", lambda path: np.save(path, np.full((100, 10), 0.1, np.float32)))
    with pytest.raises(ModelError, match="predicts something else in a fresh interpreter: a probability differs by 0"):
        validate_infra.fn(training.model, dataset, evaluation.model_copy(update={"probabilities": wrong}))


def test_a_file_that_does_not_load_is_refused(training, dataset, evaluation):
    def damage(path):
        with zipfile.ZipFile(training.model.keras.path) as whole, zipfile.ZipFile(path, "w") as part:
            part.writestr("config.json", whole.read("config.json"))

    model = training.model.model_copy(update={"keras": put(".keras", damage)})
    with pytest.raises(ModelError, match="can't be loaded in a fresh interpreter: ") as caught:
        validate_infra.fn(model, dataset, evaluation)
    assert "\n" not in str(caught.value)


def test_a_model_with_code_in_it_is_refused(training, dataset, evaluation, tmp_path):
    """A Lambda layer holds marshalled Python; safe mode doesn't run it."""
    import keras

    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Lambda(lambda x: x[:, :10])]
    )
    model.save(tmp_path / "lambda.keras")
    unsafe = put(".keras", lambda path: shutil.copyfile(tmp_path / "lambda.keras", path))
    with pytest.raises(ModelError, match="can't be loaded"):
        validate_infra.fn(training.model.model_copy(update={"keras": unsafe}), dataset, evaluation)
