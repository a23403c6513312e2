"""Training: the network, the split, the recipe; and that it learns at all."""

import hashlib
import random

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import softmax

from artifacts.dataset import load_test, load_train
from artifacts.errors import DataError, ModelError
from tasks.model.calibration import apply_temperature, fit_temperature
from tasks.model.fit import adam, batches, build, change, one_hot
from tasks.model.networks import NETWORKS
from tasks.model.recipe import PRESETS, TrainParameters
from tasks.model.saved import digest_weights, import_keras, load_model
from tasks.train import hold_out, train_model
from tests.conftest import FAST

pytestmark = pytest.mark.expensive  # it trains networks


def test_baseline_is_the_seeds_network():
    network = NETWORKS["baseline"]()
    assert network.count_params() == 3_156_098
    assert [type(layer).__name__ for layer in network.layers] == [
        "Conv2D",
        "MaxPooling2D",
        "ReLU",
        "Conv2D",
        "MaxPooling2D",
        "ReLU",
        "Dropout",
        "Flatten",
        "Dense",
        "Dense",
    ]


def test_the_saved_compact_model_is_the_fitted_one(dataset):
    """Batch normalisation computes with what it learnt, also of an image alone."""
    parameters = TrainParameters(preset="compact", epochs=10, batch_size=30, precision="float32", validation_share=0.1)
    training = train_model.fn(dataset, parameters)
    assert training.model.n_parameters == 158_338
    model = import_keras().saving.load_model(training.model.keras.path, compile=False)
    _, validation = hold_out(load_train(dataset), 0.1)
    probabilities = np.concatenate([model.predict(image[np.newaxis], verbose=0) for image in validation.x])
    assert (probabilities.argmax(axis=1) == validation.y).mean() == pytest.approx(training.history[-1].val_accuracy)
    assert training.history[-1].val_accuracy > 0.5


def test_the_record_says_what_was_trained(training):
    assert training.model.n_parameters == 3_156_098
    assert (training.n_train, training.n_validation) == (180, 20)
    assert [epoch.epoch for epoch in training.history] == [1]  # one batch, so no parts
    assert training.history[0].learning_rate > 0
    assert 0 < sum(epoch.seconds for epoch in training.history) <= training.fit_seconds
    assert training.fit_cpu_seconds > 0


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


def test_a_preset_fills_in_what_is_not_given():
    assert TrainParameters(preset="fast") == TrainParameters()
    for preset, recipe in PRESETS.items():
        filled = TrainParameters.model_validate({"preset": preset, "seed": 7})
        assert filled == TrainParameters(seed=7).model_copy(update={"preset": preset} | recipe)
    assert TrainParameters(preset="seed", epochs=2) == TrainParameters(preset="seed").model_copy(update={"epochs": 2})
    properties = TrainParameters.model_json_schema()["properties"]
    assert [name for name, field in properties.items() if "default" in field] == ["preset"]  # what a form would send
    with pytest.raises(ValidationError, match=f"no preset is called 'slow'; there are {', '.join(PRESETS)}"):
        TrainParameters.model_validate({"preset": "slow"})
    for wrong in (["fast"], None):
        with pytest.raises(ValidationError, match="preset\n  Input should be a valid string"):
            TrainParameters.model_validate({"preset": wrong})


@pytest.mark.parametrize("network", NETWORKS)
def test_first_weights_and_dropout_are_a_function_of_the_seed_whoever_else_draws(network):
    import_keras()

    def built(seed):
        model = build(network, "float32", seed)
        outputs = [model(np.ones((4, 28, 28, 1), np.float32), training=True).numpy() for _ in range(2)]
        return digest_weights(model), *(output.tobytes() for output in outputs)

    random.seed(0)
    first = built(seed=1)
    random.seed(1)
    assert built(seed=1) == first
    assert all(mine != other for mine, other in zip(built(seed=2), first, strict=True))


def test_what_is_learnt_of_teachers_is_their_mean_answer_to_the_changed_image(dataset):
    import_keras()
    train = load_train(dataset)
    teachers = [build("compact", "float32", seed) for seed in (1, 2)]
    images, answers = next(iter(batches(train, TrainParameters(preset="distilled", batch_size=20), teachers)))
    assert not any((image == images.numpy()).all(axis=(1, 2, 3)).any() for image in train.x)
    expected = np.mean([teacher.predict(images, verbose=0) for teacher in teachers], axis=0)
    np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_a_training_with_teachers_learns_from_them(dataset, training, caplog):
    caplog.set_level("INFO")
    distilled = train_model.fn(dataset, FAST.model_copy(update={"teachers": 1}))
    assert distilled.model.weights_digest != training.model.weights_digest
    assert "network 1 of 2: training baseline" in caplog.text
    assert "by its teachers' mean answers" in caplog.text


def test_a_network_that_averages_shifts_answers_with_the_mean_logits_of_the_shifted_images(dataset, training):
    averaged = train_model.fn(dataset, FAST.model_copy(update={"average_shifts": True}))
    assert averaged.history[-1].val_loss == training.history[-1].val_loss  # the fit itself is the same
    images = load_test(dataset).x
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    network = load_model(training.model)
    logits = np.mean(
        [
            np.log(network.predict(framed[:, y : y + 28, x : x + 28], verbose=0)) * training.temperature
            for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        ],
        axis=0,
    )
    answers = load_model(averaged.model).predict(images, verbose=0)
    np.testing.assert_allclose(answers, softmax(logits / averaged.temperature, axis=1), atol=1e-5)
    assert not np.allclose(answers, network.predict(images, verbose=0), atol=1e-2)


@pytest.mark.parametrize("schedule", ["constant", "falling"])
def test_adam_does_what_keras_does(dataset, schedule):
    """The same steps, but for float32's last digits."""
    keras = import_keras()
    parameters = TrainParameters()
    rate = 0.01 if schedule == "constant" else keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)
    split = load_train(dataset)
    weights = []
    for optimizer in (adam(parameters, rate), keras.optimizers.Adam(rate, parameters.beta_1, parameters.beta_2)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
        model.compile(optimizer, loss="categorical_crossentropy")
        before = model.get_weights()[0]
        model.fit(split.x, one_hot(split.y), batch_size=20, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights()[0])
    assert np.abs(weights[0] - before).max() > 0.02
    np.testing.assert_allclose(*weights, atol=1e-5)


def test_changed_images_are_a_function_of_the_seed_and_keep_their_middle(dataset):
    import tensorflow as tf

    images = load_train(dataset).x
    same, again, other = (change(images, 1, seed).numpy() for seed in ([0, 1], [0, 1], [0, 2]))
    assert (same == again).all()
    assert (same != other).any(axis=(1, 2, 3)).all()
    assert same.shape == images.shape
    assert 0 <= same.min() <= same.max() <= 1
    np.testing.assert_allclose(change(images, 0, [0, 1]), images, atol=1e-5)
    # A dot in the middle moves by the shift alone, two pixels and what scaling adds: any way, so not in the mean.
    dots = tf.constant(np.pad(np.ones((2000, 2, 2, 1), np.float32), [(0, 0), (13, 13), (13, 13), (0, 0)]))
    mean = change(dots, 1, [0, 0]).numpy().mean(axis=0)[..., 0]
    for along in (mean.sum(axis=0), mean.sum(axis=1)):
        assert np.average(np.arange(28), weights=along) == pytest.approx(13.5, abs=0.1)
        assert set(np.flatnonzero(along)) == set(range(10, 18))


@pytest.mark.parametrize("teachers", [0, 1])
def test_a_training_that_diverges_stops_at_its_first_validation(dataset, monkeypatch, teachers):
    """No bounded learning rate makes Keras's clipped loss overflow on the sample: weights that overflow do."""
    keras = import_keras()

    def overflowing():
        dense = keras.layers.Dense(10, "softmax", kernel_initializer=keras.initializers.Constant(float("inf")))
        return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), dense])

    monkeypatch.setitem(NETWORKS, "baseline", overflowing)
    monkeypatch.setattr(
        "tasks.model.checkpoint.Checkpoint.save", lambda *_: pytest.fail("a state that is no number was kept")
    )
    with pytest.raises(ModelError, match=r"diverged at --train.learning_rate 0.008: the loss is not a number"):
        train_model.fn(dataset, FAST.model_copy(update={"epochs": 3, "teachers": teachers}))


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
