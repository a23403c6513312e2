"""Labels that were flipped on purpose are found, and few others."""

import csv

import numpy as np
import pytest

from artifacts.dataset import Split, load_train
from artifacts.errors import DataError
from tasks.check_labels import check_labels, predict_out_of_sample
from tasks.data.sources import package_file, read_package
from tasks.ingest import IngestParameters, ingest_data

pytestmark = pytest.mark.expensive  # it trains networks


def test_flipped_training_labels_are_suspected(home, tmp_path):
    arrays = {name: array[:6000] for name, array in read_package(package_file()).items()}
    flipped = np.random.default_rng(0).choice(6000, 60, replace=False)
    arrays["y_train"] = arrays["y_train"].copy()
    arrays["y_train"][flipped] = (arrays["y_train"][flipped] + 3) % 10
    np.savez(tmp_path / "flipped.npz", **arrays)
    check = check_labels.fn(ingest_data.fn(IngestParameters(source="path", path=tmp_path / "flipped.npz")))
    rows = list(csv.DictReader(check.csv.read_bytes().decode().splitlines()))
    suspects = {int(row["index"]) for row in rows if row["suspect"] == "True"}
    assert len(rows) == check.n_wrong
    assert len(suspects) == check.n_suspects
    assert len(suspects & set(flipped)) >= 50
    assert len(suspects - set(flipped)) <= 60  # of 6,000, by models of 3,000 images each
    assert [float(row["quality"]) for row in rows] == sorted(float(row["quality"]) for row in rows)
    first = np.load(check.images.path)
    np.testing.assert_array_equal(first[0], arrays["x_train"][int(rows[0]["index"])])


def test_a_class_with_one_image_is_said(dataset):
    train = load_train(dataset)
    few = np.flatnonzero(train.y != 3).tolist() + np.flatnonzero(train.y == 3)[:1].tolist()
    with pytest.raises(DataError, match="class 3 has 1 training images"):
        predict_out_of_sample(Split(train.x[few], train.y[few]))
