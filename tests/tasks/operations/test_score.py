"""The champion's word on other people's images, and the alarm when they aren't what it was trained on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from artifacts.dataset import read_array
from artifacts.errors import DataError, ModelError, RegistryError
from artifacts.records.release import Check, Verdict
from tasks.data.sources import package_file, read_package
from tasks.evaluate import evaluate_model
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.operations.score import score, score_images
from tasks.register import register_model
from tasks.registry.history import find_champion
from tasks.registry.versions import connect
from tasks.train import train_model

pytestmark = pytest.mark.expensive  # it trains networks

PROMOTE = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)
COLUMNS = ["image", "label", "probability", "ask_a_person"]


@pytest.fixture(scope="module")
def whole():
    return read_package(package_file())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, whole):
    """A model of 3,000 images, tested on enough to know how sure it usually is; with its data and evaluation."""
    file = tmp_path_factory.mktemp("data") / "part.npz"
    np.savez(file, **{name: array[: 3000 if name.endswith("train") else 8000] for name, array in whole.items()})
    dataset = ingest_data.fn(IngestParameters(source="path", path=file))
    training = train_model.fn(dataset, TrainParameters(epochs=2, precision="float32"))
    return dataset, training, evaluate_model.fn(training.model, dataset)


@pytest.fixture(scope="module")
def registry(tmp_path_factory, trained):
    """A registry of its own, with that model as its champion."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        register_model.fn(*trained, PROMOTE)
    return uri


@pytest.fixture(scope="module")
def probabilities(trained):
    """Of the first 1,000 test images."""
    return read_array(trained[2].probabilities)[:1000]


@pytest.fixture
def champion(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    return find_champion.fn()


@pytest.fixture
def run(champion, tmp_path):
    """Score a file or folder; returns the record and the table."""

    def run(images, suffix=".csv", **parameters):
        output = tmp_path / f"scored{suffix}"
        scoring = score_images.fn(champion, images, output, **parameters)
        assert list(tmp_path.glob(".*")) == []
        return scoring, pd.read_csv(output) if suffix == ".csv" else pd.read_parquet(output)

    return run


@pytest.fixture
def save(tmp_path):
    def save(images):
        np.savez(tmp_path / "images.npz", images)
        return tmp_path / "images.npz"

    return save


def test_the_test_images_get_the_evaluations_probabilities_and_raise_no_alarm(run, save, whole, probabilities):
    ask_below = float(np.median(probabilities.max(axis=1)))
    for suffix in (".csv", ".parquet"):
        scoring, table = run(save(whole["x_test"][:1000]), suffix, ask_below=ask_below)
        assert list(table.columns) == COLUMNS
        assert table["image"].tolist() == list(range(1000))
        assert (table["label"] == probabilities.argmax(axis=1)).all()
        np.testing.assert_allclose(table["probability"], probabilities.max(axis=1), atol=1e-5)
        assert (table["ask_a_person"] == (table["probability"] < ask_below)).all()
        assert (scoring.n_images, scoring.n_ask, scoring.version) == (1000, table["ask_a_person"].sum(), 1)
        assert 450 <= scoring.n_ask <= 550
        assert scoring.drift == ()


def test_more_than_a_batch_keeps_its_order(run, save, whole):
    _, table = run(save(np.resize(whole["x_test"][:100], (2201, 28, 28))))
    assert table["image"].tolist() == list(range(2201))
    assert (table["label"].to_numpy() == np.resize(table["label"][:100], 2201)).all()


def test_in_code(champion, whole, probabilities):
    images = whole["x_test"][:1000]
    for given in (images, iter([images[:70], images[70:]]), images / np.float32(255), 255 - images):
        assert (pd.concat(score(given))["label"].to_numpy() == probabilities.argmax(axis=1)).all()
    with pytest.raises(DataError, match="float64 in 0–255"):
        next(score(images.astype(float)))
    with pytest.raises(DataError, match=r"shape \(28, 28\)"):
        next(score(images[0]))


def test_other_images_of_mnist_raise_no_alarm(run, save, whole):
    assert run(save(whole["x_test"][8000:]))[0].drift == ()


def test_rotated_images_raise_alarms_everywhere(run, save, whole, caplog):
    scoring, _ = run(save(np.rot90(whole["x_test"][:300], axes=(1, 2))))
    drift = " ".join(scoring.drift)
    for sign in ("height", "width", "the model's confidence"):
        assert sign in drift
    for sentence in scoring.drift:
        assert sentence in caplog.text
        assert sentence in str(scoring)
        assert sentence in scoring.markdown()


def test_images_that_only_the_model_finds_strange_raise_an_alarm(run, save, whole):
    """Mirrored digits have the ink of digits, in the same places, and most are none."""
    (sentence,) = run(save(np.roll(whole["x_test"][8000:, :, ::-1], 1, axis=2)))[0].drift
    assert sentence.startswith("the model's confidence is")


def test_names_are_no_formulas_in_a_spreadsheet(run, tmp_path, whole):
    folder = tmp_path / "names"
    folder.mkdir()
    names = ["+1.png", "-a.png", '=HYPERLINK("x").png', "@x.png", "\t=1.png", "a=b.png"]
    for name in names:
        Image.fromarray(whole["x_test"][0]).save(folder / name)
    _, table = run(folder, ".parquet")
    assert sorted(table["image"]) == sorted(names)
    _, table = run(folder)
    assert sorted(table["image"]) == sorted(["a=b.png", *(f"'{name}" for name in names[:-1])])


def test_bad_input_leaves_the_old_output(champion, tmp_path, whole):
    output = tmp_path / "out" / "scored.csv"
    output.parent.mkdir()
    output.write_text("the last run's")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "none.npz", x_test=whole["x_test"][:0])
    np.savez(tmp_path / "damaged.npz", x_test=whole["x_test"][:3000])
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[2_000_000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(content)
    for name, message in {
        "empty": "has no images",
        "none.npz": "has no images",
        "damaged.npz": "is damaged or of another kind: Bad CRC-32",
    }.items():
        with pytest.raises(DataError, match=message):
            score_images.fn(champion, tmp_path / name, output)
        assert [path.read_text() for path in output.parent.iterdir()] == ["the last run's"], name


def test_files_that_cannot_be_read_are_left_out_unless_it_is_strict(champion, tmp_path, whole, caplog):
    folder = tmp_path / "digits"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(whole["x_test"][n]).save(folder / f"{n}.png")
    for n in range(25):
        (folder / f"._{n}.png").touch()
    scoring = score_images.fn(champion, folder, tmp_path / "labels.csv")
    assert (scoring.n_images, scoring.n_left_out) == (3, 25)
    assert "; 25 files left out, see the log" in str(scoring)
    assert caplog.text.count("left out: ") == 21
    assert "left out: 5 more files" in caplog.text
    with pytest.raises(DataError, match=r"\._0\.png"):
        score_images.fn(champion, folder, tmp_path / "labels.csv", strict=True)
    for n in range(3):
        (folder / f"{n}.png").unlink()
    with pytest.raises(DataError, match=r"digits has no images \(.*\._0\.png"):
        score_images.fn(champion, folder, tmp_path / "labels.csv")


def test_an_output_that_cannot_be_written(champion, sample_npz, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/a\.csv can't be written \(No such file"):
        score_images.fn(champion, sample_npz, tmp_path / "nowhere" / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv can't be written \(Not a directory"):
        score_images.fn(champion, sample_npz, sample_npz / "a.csv")


def test_a_flag_that_is_missing_or_wrong_is_named_in_one_line(home):
    command = [sys.executable, "-m", "flows", "score", "--output=a.xlsx", "--ask_below=90"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --images: Field required",
        "error: --output a.xlsx: Value error, the output's name must end in .csv or .parquet",
        "error: --ask_below 90: Input should be less than or equal to 1",
    ]


def test_no_champion(monkeypatch, tmp_path, sample_npz):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RegistryError, match="mnist has no champion"):
        score_images.fn(find_champion.fn(), sample_npz, tmp_path / "a.csv")


def test_a_champion_with_other_weights_is_refused(champion, sample_npz, tmp_path):
    other = champion.model_copy(update={"model": champion.model.model_copy(update={"weights_digest": "f" * 64})})
    with pytest.raises(ModelError, match="the weights of version 1 of mnist aren't those that were registered"):
        score_images.fn(other, sample_npz, tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_version_of_old_without_a_profile_is_scored_all_the_same(champion, save, whole, tmp_path, caplog):
    run = connect().get_run(champion.mlflow_run_id)
    file = Path(run.info.artifact_uri.removeprefix("file://"), "profile.json")
    kept = file.rename(tmp_path / "kept.json")
    try:
        rotated = save(np.rot90(whole["x_test"][:300], axes=(1, 2)))
        scoring = score_images.fn(champion, rotated, tmp_path / "a.csv")
    finally:
        kept.rename(file)
    assert (scoring.n_images, scoring.drift) == (300, ())
    assert "version 1 of mnist has no profile.json" in caplog.text


def test_the_flow_leaves_an_artifact(champion, prefect_server, sample_npz, tmp_path):
    from prefect.client.orchestration import get_client

    from flows.score import score

    scoring = score(sample_npz, tmp_path / "a.parquet")
    assert len(pd.read_parquet(scoring.output)) == scoring.n_images == 100
    with get_client(sync_client=True) as client:
        scorings = [artifact.data for artifact in client.read_artifacts() if artifact.key == "scoring"]
    assert len(scorings) == 1
    assert "Version 1 scored **100 images**" in scorings[0]
