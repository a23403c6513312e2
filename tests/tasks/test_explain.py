"""Planted causes are found: flipped labels, blends of two digits, a pair made confusable, images from nowhere."""

import csv
from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.metrics.pairwise import cosine_distances

import tasks.explain
from artifacts.dataset import load_test, read_array, scale
from artifacts.records.evaluation import Case
from tasks.data.sources import package_file, read_package
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors, find_neighbours, find_systematic_pairs, most_instructive_first
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.model.saved import import_keras
from tasks.train import train_model
from tests.artifacts.conftest import make_case

pytestmark = pytest.mark.expensive  # it trains networks

CASES = TypeAdapter(list[Case])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Ingest the first 12,000 training and 3,000 test images, the latter spoilt by a function."""
    arrays = read_package(package_file())
    arrays = {name: array[:12_000] if "train" in name else array[:3000] for name, array in arrays.items()}

    def ingest(spoil=lambda *_: None):
        x, y = arrays["x_test"].copy(), arrays["y_test"].copy()
        spoil(x, y)
        file = tmp_path_factory.mktemp("planted") / "data.npz"
        np.savez(file, **arrays | {"x_test": x, "y_test": y})
        return ingest_data.fn(IngestParameters(source="path", path=file))

    return ingest


@pytest.fixture(scope="module")
def model(planted):
    return train_model.fn(planted(), TrainParameters(epochs=3, batch_size=256, precision="float32")).model


@pytest.fixture(scope="module")
def network(model):
    return import_keras().saving.load_model(model.keras.path, compile=False)


def explain(model, dataset, rival=None):
    explanation = explain_errors.fn(model, dataset, evaluate_model.fn(model, dataset), rival)
    cases = CASES.validate_json(explanation.cases.read_bytes())
    assert Counter(case.cause for case in cases) == {
        cause.name: cause.times for cause in explanation.causes if cause.times
    }
    return explanation, {case.index: case for case in cases}


def test_flipped_labels_are_label_errors_and_few_others_are(model, planted):
    rng = np.random.default_rng(4)
    flipped = rng.choice(3000, 50, replace=False)

    def flip(_, y):
        y[flipped] = (y[flipped] + rng.integers(1, 10, 50)) % 10

    explanation, cases = explain(model, planted(flip))
    label_errors = {index for index, case in cases.items() if case.cause == "label error"}
    assert len(cases.keys() & set(flipped)) >= 49
    assert len(label_errors & set(flipped)) >= 45
    assert len(label_errors - set(flipped)) <= 25
    suspects = [int(row["index"]) for row in csv.DictReader(explanation.suspects.read_bytes().decode().splitlines())]
    assert len(set(suspects[:60]) & set(flipped)) >= 45


def blend(network, first, second, wanted):
    """Mix two images so that the network gives the first one's class the probability wanted, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(12):
        share = (low + high) / 2
        mixed = np.rint(share * first + (1 - share) * second).astype(np.uint8)
        probabilities = network.predict_on_batch(scale(mixed[np.newaxis]))[0]
        low, high = (share, high) if probabilities[4] < wanted else (low, share)
    return mixed


@pytest.mark.parametrize(("wanted", "cause"), [(0.45, "ambiguous"), (0.2, "confusable pair")])
def test_blends_of_a_4_and_a_9(wanted, cause, network, model, planted):
    places = []

    def plant(x, y):
        fours, nines = np.flatnonzero(y == 4)[:25], np.flatnonzero(y == 9)[:25]
        for four, nine in zip(fours, nines, strict=True):
            x[four] = blend(network, x[four].astype(float), x[nine].astype(float), wanted)
            places.append(int(four))

    _, cases = explain(model, planted(plant))
    found = Counter(cases[place].cause for place in places if place in cases and cases[place].guesses[0].label == 9)
    assert sum(found.values()) >= 15
    assert found[cause] >= 0.8 * sum(found.values())


def test_images_from_nowhere_are_atypical(model, planted):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (10, 28, 28), np.uint8)

    def plant(x, _):
        x[:10] = noise

    _, cases = explain(model, planted(plant))
    found = Counter(cases[place].cause for place in range(10) if place in cases)
    assert found["atypical"] >= 7
    assert set(found) <= {"atypical", "ambiguous"}  # which is asked first


def test_each_case_has_its_neighbours_and_its_status_against_the_champion(model, planted, training):
    dataset = planted()
    champion = evaluate_model.fn(training.model, dataset)
    explanation, cases = explain(model, dataset, champion)
    y_test, y_train = load_test(dataset).y, read_array(dataset.y_train)
    champion_right = read_array(champion.probabilities).argmax(axis=1) == y_test
    assert cases
    for index, case in cases.items():
        assert case.label == y_test[index] != case.guesses[0].label
        assert case.status == ("new" if champion_right[index] else "shared")
        assert [near.label for near in case.neighbours] == y_train[[near.index for near in case.neighbours]].tolist()
        assert sorted(near.distance for near in case.neighbours) == [near.distance for near in case.neighbours]
    images = read_array(explanation.images)
    first = CASES.validate_json(explanation.cases.read_bytes())[0]
    np.testing.assert_array_equal(images[0, 0], read_array(dataset.x_test)[first.index])
    np.testing.assert_array_equal(images[0, 1], read_array(dataset.x_train)[first.neighbours[0].index])


def test_neighbours_are_the_nearest_by_cosine_and_of_many_images_those_of_a_sample(
    model, network, dataset, monkeypatch
):
    train, images = read_array(dataset.x_train), load_test(dataset).x[:20]
    distances, indices = find_neighbours(model, train, images)
    assert distances.shape == indices.shape == (20, 10)
    features = import_keras().Model(network.inputs, network.layers[-1].input)
    all_distances = cosine_distances(*(features.predict(some, verbose=0) for some in (images, scale(train))))
    np.testing.assert_allclose(distances, np.sort(all_distances, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(distances, np.take_along_axis(all_distances, indices, 1), atol=1e-6)

    monkeypatch.setattr(tasks.explain, "N_SEARCHED", len(train) // 2)
    distances, of_sample = find_neighbours(model, train, images)
    np.testing.assert_allclose(distances, np.take_along_axis(all_distances, of_sample, 1), atol=1e-6)
    assert len(np.unique(of_sample)) <= len(train) // 2
    assert not np.array_equal(of_sample, indices)


def test_a_model_without_an_error_has_nothing_to_explain(training, evaluation, dataset):
    y = load_test(dataset).y
    perfect = np.eye(10, dtype=np.float32)[y] * 0.9 + 0.01
    from artifacts.store import put

    right = evaluation.model_copy(update={"probabilities": put(".npy", lambda path: np.save(path, perfect))})
    explanation = explain_errors.fn(training.model, dataset, right, None)
    assert CASES.validate_json(explanation.cases.read_bytes()) == []
    assert read_array(explanation.images).shape == (0, 4, 28, 28)


def test_a_pair_is_systematic_only_if_chance_would_not_make_it():
    labels, predictions = np.array([2] * 8 + [7] * 4 + list(range(10))), np.array([7] * 8 + [2] * 4 + [5] * 5 + [0] * 5)
    wrong = labels != predictions
    systematic = find_systematic_pairs(labels[wrong], predictions[wrong])
    assert systematic.keys() == {frozenset((2, 7))}
    assert systematic[frozenset((2, 7))][0] == 12
    assert find_systematic_pairs(labels[:0], labels[:0]) == {}


def test_the_first_screen_has_the_clearest_of_each_cause_and_what_the_champion_had_right():
    cases = [
        make_case(1, 4, 9, 0.5, cause="ambiguous"),
        make_case(2, 4, 9, 0.6, cause="ambiguous"),
        make_case(3, 4, 9, 0.7, cause="ambiguous", status="shared"),
        make_case(4, 4, 9, 0.8, cause="label error"),
    ]
    assert [case.index for case in most_instructive_first(cases)] == [4, 2, 1, 3]
