"""The suite lets real MNIST pass and stops each kind of bad data, naming the expectation that it breaks."""

import html
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import artifacts.dataset
from artifacts.records.data import Dataset, Validation
from artifacts.store import put
from tasks.validate import ExpectationError, ValidateParameters, validate_data
from tests.conftest import TINY

pytestmark = pytest.mark.expensive  # it runs Great Expectations, whose import takes seconds

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def passed(mnist) -> Validation:
    return validate(mnist)


def validate(arrays: Arrays, parameters: ValidateParameters = TINY) -> Validation:
    files = {
        name: put(".npy", lambda path, array=array: np.save(path, array, allow_pickle=False))
        for name, array in arrays.items()
    }
    return validate_data.fn(Dataset(source="path", digest="0" * 64, **files), parameters)


def broken(validation: Validation, severity: str = "error") -> set[tuple[str, str | None]]:
    return {(o.table, o.column) for o in validation.outcomes if not o.success and o.severity == severity}


def test_mnist_passes(passed):
    assert passed.success
    assert all(outcome.success for outcome in passed.outcomes)


def test_both_splits_are_held_to_the_same_suite(passed):
    suite = {
        split: [(o.expectation, o.column, o.severity) for o in passed.outcomes if o.table.startswith(split)]
        for split in ("train", "test")
    }
    assert suite["train"]
    leakage = [one for one in suite["test"] if one[1] == "in_train"]
    assert [severity for _, _, severity in leakage] == ["error", "warning"]
    assert suite["train"] == [one for one in suite["test"] if one not in leakage]


def nan(a: Arrays) -> None:
    a["x_train"] = a["x_train"].astype(np.float32)
    a["x_train"][3, 5, 5] = np.nan


def infinite(a: Arrays) -> None:
    a["x_test"] = a["x_test"].astype(np.float64)
    a["x_test"][3, 5, 5] = np.inf
    a["x_test"][4, 5, 5] = -np.inf


def negative(a: Arrays) -> None:
    a["x_train"] = a["x_train"].astype(np.int32)
    a["x_train"][3, 5, 5] = -1


def too_bright(a: Arrays) -> None:
    a["x_test"] = a["x_test"].astype(np.uint16)
    a["x_test"][3, 5, 5] = 256


def blank(a: Arrays) -> None:
    a["x_train"][3] = 0


def constant(a: Arrays) -> None:
    a["x_test"][3, :] = 40


def already_scaled(a: Arrays) -> None:
    a["x_train"] = (a["x_train"] / 255).astype(np.float32)


def class_missing(a: Arrays) -> None:
    a["y_train"][a["y_train"] == 9] = 4


def eleventh_class(a: Arrays) -> None:
    a["y_test"][7] = 10


def labels_as_floats(a: Arrays) -> None:
    a["y_train"] = a["y_train"].astype(np.float32)


def other_size(a: Arrays) -> None:
    a["x_test"] = a["x_test"][:, 2:-2, 2:-1]


def other_type(a: Arrays) -> None:
    a["x_train"] = a["x_train"].astype(np.int64)


def label_too_many(a: Arrays) -> None:
    a["y_train"] = np.append(a["y_train"], np.uint8(1))


def image_too_many(a: Arrays) -> None:
    a["x_train"] = np.append(a["x_train"], 255 - a["x_train"][:1], axis=0)


def images_missing(a: Arrays) -> None:
    a["x_test"], a["y_test"] = a["x_test"][:98], a["y_test"][:98]


def shuffled_labels(a: Arrays) -> None:
    a["y_train"] = np.random.default_rng(0).permutation(a["y_train"])


def duplicates(a: Arrays) -> None:
    a["x_train"][5:9] = a["x_train"][4]


def train_in_test(a: Arrays) -> None:
    a["x_test"][10:20] = a["x_train"][10:20]
    a["y_test"][10:20] = a["y_train"][10:20]


def inverted(a: Arrays) -> None:
    a["x_train"], a["x_test"] = 255 - a["x_train"], 255 - a["x_test"]


def off_centre(a: Arrays) -> None:
    a["x_test"] = np.roll(a["x_test"], 6, axis=1)


BOTH = ("train images", "test images")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (nan, {("train images", "dtype"), ("train images", "n_not_finite")}),
        (infinite, {("test images", "dtype"), ("test images", "n_not_finite")}),
        (negative, {("train images", "dtype"), ("train images", "pixel_min")}),
        (too_bright, {("test images", "dtype"), ("test images", "pixel_max")}),
        (blank, {("train images", "pixel_max"), ("train images", "pixel_range")}),
        (constant, {("test images", "pixel_range")}),
        (
            already_scaled,
            {
                ("train images", "dtype"),
                ("train images", "pixel_mean"),
                ("train images", "agrees_with_mnist"),
                ("test images", "agrees"),
            },
        ),
        (class_missing, {("train classes", "count"), ("train classes", "share")}),
        (eleventh_class, {("test images", "label")}),
        (labels_as_floats, {("train images", "label_dtype")}),
        (
            other_size,
            {
                ("test images", name)
                for name in ("height", "width", "pixel_mean", "border_max", "agrees", "agrees_with_mnist")
            },
        ),
        (other_type, {("train images", "dtype")}),
        (label_too_many, {("train images", None), ("train images", "digest")}),
        (image_too_many, {("train images", None), ("train images", "label")}),
        (images_missing, {("test images", None)}),
        (
            shuffled_labels,
            {("train images", "agrees"), ("train images", "agrees_with_mnist"), ("test images", "agrees")},
        ),
        (duplicates, {("train images", "is_duplicate")}),
        (train_in_test, {("test images", "in_train")}),
        (inverted, {(table, column) for table in BOTH for column in ("pixel_mean", "border_max", "agrees_with_mnist")}),
        (off_centre, {("test images", column) for column in ("border_max", "agrees", "agrees_with_mnist")}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_data_break(arrays, spoil: Callable[[Arrays], None], expected):
    spoil(arrays)

    with pytest.raises(ExpectationError) as caught:
        validate(arrays)

    assert broken(caught.value.validation) == expected


def test_scaling_taken_away_breaks_the_pixel_range(arrays, monkeypatch):
    monkeypatch.setattr(artifacts.dataset, "scale", lambda images: images.astype(np.float32)[..., np.newaxis])

    with pytest.raises(
        ExpectationError, match=r"column pixel_max, .* Observed: 200 of 200 rows unexpected, e\.g\. 255"
    ):
        validate(arrays)


def test_the_channel_axis_taken_away_breaks_channels(arrays, monkeypatch):
    monkeypatch.setattr(artifacts.dataset, "scale", lambda images: np.divide(images, 255, dtype=np.float32))

    with pytest.raises(ExpectationError) as caught:
        validate(arrays)

    assert broken(caught.value.validation) == {
        (table, column) for table in BOTH for column in ("channels", "agrees_with_mnist")
    }


def test_the_error_is_one_line_that_says_where_what_and_what_to_do(arrays):
    arrays["y_train"][[20, 30]] = 10

    with pytest.raises(ExpectationError) as caught:
        validate(arrays)

    assert str(caught.value) == (
        "the data don't pass validation: train images, column label, expect_column_values_to_be_in_set: "
        "Each label is a digit, 0–9. Observed: 2 of 200 rows unexpected, e.g. 10 (rows 20, 30). "
        "Correct the data or, if they are right, loosen the bounds (--validate.…)"
    )


def test_few_duplicates_are_a_warning(arrays):
    duplicates(arrays)
    train_in_test(arrays)

    validation = validate(arrays, TINY.model_copy(update={"duplicates_max": 0.02, "leakage_max": 0.2}))

    assert validation.success
    assert broken(validation, "warning") == {("train images", "is_duplicate"), ("test images", "in_train")}
    assert {o.sample_indices for o in validation.outcomes if not o.success} == {(5, 6, 7, 8), tuple(range(10, 20))}


def test_a_failure_names_a_few_counts_the_rest_and_keeps_them_all(arrays):
    other_size(arrays)

    with pytest.raises(ExpectationError, match=r"column height.*column width.*; and 3 more\.") as caught:
        validate(arrays)

    validation = caught.value.validation
    assert not validation.success
    results = json.loads(validation.result.read_bytes())
    assert [result["success"] for result in results] == [True, True, False, True]
    (height,) = (one for one in results[2]["results"] if one["expectation_config"]["kwargs"].get("column") == "height")
    assert height["result"]["unexpected_count"] == 100
    assert height["result"]["partial_unexpected_index_list"] == list(range(10))
    page = validation.data_docs.read_bytes().decode()
    assert "Each image is 28 pixels high. Observed: 100 of 100 rows unexpected, e.g. 24." in page
    assert page.count("fa-times text-danger") == 6


def test_data_docs_show_every_expectation_and_load_nothing(passed):
    page = passed.data_docs.read_bytes().decode()

    assert page.count("fa-check-circle text-success") == len(passed.outcomes)
    assert all(html.escape(outcome.meaning, quote=False) in page for outcome in passed.outcomes)
    assert not re.search(r"//|<script|@import|url\(", page)
    assert re.findall(r"(?:src|href)=\"(.*?)\"", page) == ["data:,"]


def test_equal_data_leave_equal_bytes(passed, arrays):
    assert validate(arrays) == passed
