"""Training: the network, the split, the recipe; and that it learns at all."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from artifacts.dataset import load_test, load_train
from artifacts.errors import DataError, ModelError
from tasks.networks import NETWORKS, import_keras
from tasks.train import TrainParameters, apply_temperature, fit_temperature, hold_out, train_model
from tests.conftest import FAST


def test_baseline_is_the_seeds_network():
    network = NETWORKS["baseline"]()
    assert network.count_params() == 3_156_098
    assert [type(layer).__name__ for layer in network.layers] == [
        "Conv2D",
        "MaxPooling2D",
        "Conv2D",
        "MaxPooling2D",
        "Dropout",
        "Flatten",
        "Dense",
        "Dense",
    ]


def test_the_record_says_what_was_trained(training):
    assert training.model.n_parameters == 3_156_098
    assert (training.n_train, training.n_validation) == (180, 20)
    assert [epoch.epoch for epoch in training.history] == [1]  # one batch, so no parts
    assert training.history[0].learning_rate > 0
    assert 0 < sum(epoch.seconds for epoch in training.history) <= training.fit_seconds


def test_the_same_parameters_give_the_same_weights(dataset, training):
    assert train_model.fn(dataset, FAST).model.weights_digest == training.model.weights_digest


def test_another_seed_gives_other_weights(dataset, training):
    other = train_model.fn(dataset, FAST.model_copy(update={"seed": 1}))
    assert other.model.weights_digest != training.model.weights_digest


def test_one_batch_is_memorised(dataset):
    """A network that can't learn 180 images by heart has a broken gradient, loss or label."""
    many = train_model.fn(
        dataset, FAST.model_copy(update={"epochs": 25, "batch_size": 30, "learning_rate": 1e-3, "label_smoothing": 0})
    )
    assert many.history[-1].accuracy == 1
    assert many.history[-1].loss < 0.05


@pytest.mark.parametrize("file", ["keras", "h5"])
def test_the_saved_model_loads_and_computes_in_float32(training, dataset, file):
    model = import_keras().saving.load_model(getattr(training.model, file).path, compile=False)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    probabilities = model.predict(load_test(dataset).x[:3], verbose=0)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_validation_split_is_held_out(dataset):
    split = load_train(dataset)
    train, validation = hold_out(split, 0.1)
    rows = [{hashlib.sha256(image.tobytes()).digest() for image in part.x} for part in (split, train, validation)]
    assert rows[1].isdisjoint(rows[2])
    assert rows[1] | rows[2] == rows[0]
    assert set(validation.y.tolist()) == set(range(10))


def test_too_few_images_are_said(dataset):
    split = load_train(dataset)
    with pytest.raises(DataError, match=r"10 training images .* --train.validation_share"):
        hold_out(type(split)(split.x[:10], split.y[:10]), 0.1)


def test_parameters_are_bounded():
    for wrong in ({"epochs": 0}, {"network": "resnet"}, {"precision": "int8"}, {"optimizer": "sgd"}):
        with pytest.raises(ValidationError):
            TrainParameters.model_validate(wrong)


def test_a_training_that_diverges_is_said_in_one_line(dataset, training, monkeypatch):
    # No bounded learning rate makes Keras's clipped loss overflow on the sample.
    diverged = training.history[0].model_copy(update={"loss": float("nan")})
    monkeypatch.setattr("tasks.train.fit", lambda *_: (diverged,))
    with pytest.raises(ModelError, match=r"diverged at --train.learning_rate 0.008: its loss is no number"):
        train_model.fn(dataset, FAST)


def test_the_temperature_makes_confidence_what_accuracy_is():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 10))
    calibrated = apply_temperature(np.exp(logits), 1)
    y_true = np.array([rng.choice(10, p=p) for p in calibrated])
    overconfident = apply_temperature(calibrated.astype(np.float32), 1 / 2.5)
    assert fit_temperature(y_true, overconfident.astype(np.float32)) == pytest.approx(2.5, rel=0.1)


def test_the_saved_model_holds_the_temperature(dataset, training, monkeypatch):
    monkeypatch.setattr("tasks.train.fit_temperature", lambda *_: 1.0)
    plain = train_model.fn(dataset, FAST).model
    images = load_test(dataset).x[:20]
    load = import_keras().saving.load_model
    before, after = (
        load(model.keras.path, compile=False).predict(images, verbose=0) for model in (plain, training.model)
    )
    assert training.temperature != 1
    np.testing.assert_allclose(apply_temperature(before, training.temperature), after, atol=1e-5)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
