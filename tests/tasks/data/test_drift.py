"""The alarm when images aren't like those that a model was trained on, on the whole of MNIST."""

import numpy as np
import pytest

from tasks.data.drift import FIGURES, SIZES, Drift, measure, profile, usual
from tasks.data.images import prepare
from tasks.data.sources import package_file, read_package


@pytest.fixture(scope="module")
def whole():
    return read_package(package_file())


@pytest.fixture(scope="module")
def known(whole):
    """The profile of MNIST's training images and of a model that is sure by 0.9 to 1."""
    probabilities = np.zeros((10_000, 10), np.float32)
    probabilities[:, 3] = np.random.default_rng(0).uniform(0.9, 1, 10_000)
    return profile(whole["x_train"], probabilities)


@pytest.fixture
def drift(known):
    """What is said of images whose labels all have a certain probability."""

    def drift(images, probability=0.95):
        prepared, n_inverted = prepare(images)
        seen = Drift()
        for start in range(0, len(images), 100):
            part = prepared[start : start + 100]
            seen.add(part, n_inverted if start == 0 else 0, np.full(len(part), probability, np.float32))
        return " ".join(seen.sentences(known))

    return drift


def share_of_alarms(figures, usuals, n):
    """The share of all rows of `n` images, whose figures these are, that are further off than is tolerated."""
    sums = np.concatenate([np.zeros((1, len(FIGURES))), figures.cumsum(axis=0)])
    means = (sums[n:] - sums[:-n]) / n
    far = [abs(mean - known.mean) > known.tolerated(n) for mean, known in zip(means.T, usuals, strict=True)]
    return np.any(far, axis=0).mean()


@pytest.mark.expensive
def test_rows_of_either_half_of_the_training_set_are_usual_by_the_other_half(whole):
    first, second = measure(whole["x_train"][:30_000]), measure(whole["x_train"][30_000:])
    for known, other in ((first, second), (second, first)):
        usuals = [usual(values) for values in known.T]
        for n in (4, 10, 16, 25, 64, 100, 256, 1000, 5000):
            assert share_of_alarms(other, usuals, n) <= 0.004, n


def test_mnists_own_test_images_raise_no_alarm(whole, known, drift):
    assert drift(whole["x_test"]) == ""
    assert drift(whole["x_test"][:5000]) == drift(whole["x_test"][5000:]) == ""  # two groups of writers
    figures = measure(whole["x_test"])
    for n in (4, 16, 25, 64, 100, 256, 1000):
        assert share_of_alarms(figures, known.images.values(), n) < 0.02, n


def test_what_looks_different_raises_an_alarm(whole, drift):
    images = whole["x_test"][:300]
    assert "height" in (rotated := drift(np.rot90(images, axes=(1, 2))))
    assert "width" in rotated
    assert "height" in drift(np.rot90(images[:16], axes=(1, 2)))
    assert drift(255 - images) == "300 of 300 images are dark on light, and were inverted"
    assert "centre of mass" in drift(np.roll(images, 3, axis=2))
    assert "mean intensity" in drift(images // 3)
    assert "300 of 300 images are blank" in drift(images * 0)
    assert drift(images, probability=0.8) == "the model's confidence is 0.80 on average, 0.95 on its own test images"


def test_without_a_profile_only_what_is_odd_in_itself_is_said(whole):
    seen = Drift()
    seen.add(whole["x_test"][:3] // 9, 3, np.zeros(3, np.float32))
    assert seen.sentences(None) == ("3 of 3 images are dark on light, and were inverted",)


def test_few_images_tell_little(whole):
    figures = measure(whole["x_train"][:500])
    assert [set(usual(figures[:n, 0]).furthest) for n in (1, 119, 120, 500)] == [{1}, {1}, {1, 4}, {1, 4, 16}]
    assert (
        usual(figures[:, 0]).tolerated(100) == usual(figures[:, 0]).tolerated(16) < usual(figures[:, 0]).tolerated(15)
    )


def test_a_profile_survives_its_file(known):
    assert set(known.confidence.furthest) == set(SIZES)
    assert known == type(known).model_validate_json(known.model_dump_json())
