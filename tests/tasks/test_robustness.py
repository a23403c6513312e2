"""What is measured on an image is measured right, and what is changed stays a digit."""

import numpy as np
import pytest

from artifacts.dataset import read_array
from tasks.robustness import CHANGES, size, slant, slice_images, stroke_width


def bar(width, lean=0):
    """An upright stroke, 20 pixels high, leaning to the right by so many degrees."""
    image = np.zeros((1, 28, 28), np.uint8)
    for row in range(4, 24):
        left = round(13 - width / 2 + (13.5 - row) * np.tan(np.radians(lean)))
        image[0, row, left : left + width] = 255
    return image


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_stroke_width(width):
    assert stroke_width(bar(width))[0] == pytest.approx(width, abs=0.5)


@pytest.mark.parametrize("lean", [-30, -10, 0, 10, 30])
def test_slant(lean):
    assert slant(bar(3, lean))[0] == pytest.approx(lean, abs=2)


def test_size():
    assert size(bar(3)).tolist() == [60]


def test_a_blank_image_has_neither_stroke_nor_size():
    blank = np.zeros((1, 28, 28), np.uint8)
    assert (stroke_width(blank)[0], size(blank)[0]) == (0, 0)
    assert np.isfinite(slant(blank)[0])


def test_thirds_hold_each_image_once(mnist):
    slices = list(slice_images(mnist["x_test"]))
    for kind in ("stroke", "slant", "size"):
        inside = np.sum([mask for one, _, mask in slices if one == kind], axis=0)
        assert inside.tolist() == [1] * 100


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_repeatable_and_keeps_most_of_the_ink(name, mnist):
    images = mnist["x_test"]
    before = images.copy()
    changed = CHANGES[name](images, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, CHANGES[name](images, np.random.default_rng(0)))
    np.testing.assert_array_equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert (changed != images).any(axis=(1, 2)).mean() > 0.9
    assert 0.7 < changed.sum(dtype=float) / images.sum(dtype=float) < 1.7


def test_the_counts_agree_with_the_evaluation(robustness, evaluation):
    digits = [one for one in robustness.slices if one.kind == "digit"]
    assert sum(one.n for one in digits) == 100
    assert sum(one.n - one.n_right for one in digits) == evaluation.n_wrong
    right = read_array(robustness.right)
    assert right.shape == (len(robustness.slices), 100)
    for one, row in zip(robustness.slices, right, strict=True):
        assert (one.n, one.n_right) == ((row >= 0).sum(), (row == 1).sum())
        assert one.low <= one.accuracy <= one.high
    assert {one.name for one in robustness.slices if one.kind == "change"} == CHANGES.keys()
