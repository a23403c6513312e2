"""The flow on a real server: what is computed, what reused, what a run leaves behind, and what stops it."""

import hashlib

import numpy as np
import pytest

from artifacts.index import read_page
from artifacts.pictures import PICTURES
from artifacts.store import StoredFile, digest_file
from tasks import ingest
from tasks.data import sources
from tasks.operations.gc import read_runs
from tasks.registry.versions import connect

STEPS = [
    "ingest",
    "validate",
    "check-labels",
    "train",
    "evaluate",
    "robustness",
    "infra-validate",
    "gate",
    "explain",
    "report",
]
FILES = {
    "data_docs.html",
    "history.csv",
    "manifest.json",
    "metrics.json",
    "model.h5",
    "model.keras",
    "report.html",
    "report.md",
    "test_labels.csv",
    "training_labels.csv",
    "validation.json",
    "wrong_predictions.csv",
    "wrong_predictions.json",
    # There is no other champion, so nothing to draw of what only one of the two has right.
    *(f"{name}.png" for name in PICTURES if name != "disagreements"),
}
ARTIFACTS = {
    "confidence",
    "confusion-matrix",
    "data-validation",
    "learning-curves",
    "lineage",
    "model-card",
    "robustness",
    "summary",
    "wrong-predictions",
}
# Of the steps that train, if the run computes them.
PROGRESS = {"check-labels-progress", "train-progress"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One MNIST_HOME for the whole file: what one test computed, the next ones reuse."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_HOME", str(home))
        yield home


def seed(sample, number):
    return sample | {"train": sample["train"].model_copy(update={"seed": number})}


def test_a_second_run_reuses_every_step_and_leaves_the_same(run_flow, sample):
    first, second = run_flow(**sample), run_flow(**sample)

    assert {first.states[step] for step in STEPS} == {"Completed"}
    assert {second.states[step] for step in STEPS} == {"Cached"}
    assert {step["state"] for name, step in second.steps.items() if name in STEPS} == {"reused"}
    assert {step["reused_from"] for name, step in second.steps.items() if name in STEPS} == {first.id}
    for run in (first, second):
        assert {path.name for path in run.folder.iterdir()} == FILES
        assert run.artifacts.keys() - PROGRESS == ARTIFACTS
        assert "data:image/png;base64," in run.artifacts["learning-curves"]
    assert first.artifacts.keys() >= PROGRESS
    assert PROGRESS.isdisjoint(second.artifacts.keys())
    assert (first.folder / "model.keras").samefile(second.folder / "model.keras")
    assert (first.manifest["version"], second.manifest["version"]) == (1, 1)
    assert n_versions() == 1


def test_only_what_a_change_reaches_is_computed_again(run_flow, sample, tmp_path):
    run_flow(**sample)
    run_flow(**sample | {"ingest": ingest.IngestParameters(source="path", path=tmp_path / "nothing.npz")})

    # A failed run before it does not hide what changed.
    stricter = run_flow(**sample | {"gate": sample["gate"].model_copy(update={"minimum_accuracy": 1})})
    assert [step for step in STEPS if stricter.states[step] != "Cached"] == ["gate"]
    assert stricter.steps["gate"]["changes"] == ["gate.minimum_accuracy: 0.0 → 1.0"]
    assert stricter.manifest["verdict"]["decision"] == "reject"

    seeded = run_flow(**seed(sample, 1))
    assert [step for step in STEPS if seeded.states[step] == "Cached"] == ["ingest", "validate", "check-labels"]
    assert seeded.steps["train"]["changes"] == ["train.seed: 0 → 1"]
    assert seeded.manifest["version"] == 2


def test_refresh_computes_all(run_flow, sample):
    first, again = run_flow(**sample), run_flow(**sample, refresh=True)
    assert {again.states[step] for step in STEPS} == {"Completed"}
    assert again.manifest["weights_digest"] == first.manifest["weights_digest"]
    assert again.manifest["version"] == 1


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_spoilt_file_is_made_again(run_flow, sample, home, spoil):
    first = run_flow(**sample)
    stored = StoredFile(**first.manifest["files"]["model.keras"]).path
    stored.chmod(0o644)
    spoil(stored)

    second = run_flow(**sample)
    # The model is the same, whatever the date in its file: what follows from it is reused.
    assert [step for step in STEPS if second.states[step] != "Cached"] == ["train"]
    assert second.manifest["weights_digest"] == first.manifest["weights_digest"]
    assert "missing from the store" in second.steps["train"]["changes"][0]
    assert (second.folder / "model.keras").stat().st_size > 10_000_000


def test_the_data_behind_a_path_are_what_counts(run_flow, sample, arrays, tmp_path):
    first = run_flow(**sample)
    file = tmp_path / "data.npz"
    np.savez_compressed(file, **arrays)
    from_file = sample | {"ingest": ingest.IngestParameters(source="path", path=file)}
    elsewhere = run_flow(**from_file)
    assert [step for step in STEPS if elsewhere.states[step] != "Cached"] == ["ingest"]
    assert elsewhere.manifest["data_digest"] == first.manifest["data_digest"]

    arrays["x_train"][:, 14, 14] ^= 1
    np.savez_compressed(file, **arrays)
    changed = run_flow(**from_file)
    assert [step for step in STEPS if changed.states[step] == "Cached"] == []
    assert changed.manifest["data_digest"] != first.manifest["data_digest"]


def test_bad_data_stop_before_training_and_say_why(run_flow, sample, arrays, tmp_path):
    versions = n_versions()
    arrays["y_train"][arrays["y_train"] == 3] = 5
    np.savez(tmp_path / "bad.npz", **arrays)
    run = run_flow(**sample | {"ingest": ingest.IngestParameters(source="path", path=tmp_path / "bad.npz")})

    assert run.states.keys() == {"check-registry", "ingest", "validate"}
    assert run.states["validate"] == "Failed"
    assert run.tasks["validate"].run_count == 1
    assert run.flow_run.state.is_failed()
    assert "train classes" in run.flow_run.state.message
    assert run.artifacts.keys() == {"data-validation"}
    assert "train classes" in run.artifacts["data-validation"]
    assert run.manifest["state"] == "failed"
    assert "train classes" in run.manifest["reason"]
    assert {path.name for path in run.folder.iterdir()} == {"data_docs.html", "manifest.json", "validation.json"}
    assert n_versions() == versions


def n_versions():
    return len(connect().search_model_versions("name = 'mnist'"))


def test_without_the_scaling_the_run_stops_at_validate(run_flow, sample, monkeypatch):
    import artifacts.dataset

    monkeypatch.setattr(artifacts.dataset, "scale", lambda images: images[..., np.newaxis].astype(np.float32))
    run = run_flow(**sample, refresh=True)
    assert run.states["validate"] == "Failed"
    assert "pixel_max" in run.flow_run.state.message


def test_a_download_that_fails_is_tried_again(run_flow, sample, sample_npz, serve, monkeypatch, mnist):
    from prefect.client.orchestration import get_client

    # The real file can't be here: the sample stands in for it, and its digests for the canonical ones.
    monkeypatch.setattr(sources, "KERAS_NPZ", digest_file(sample_npz))
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in mnist.items()}
    monkeypatch.setattr(ingest, "MNIST", digests)
    server = serve(sample_npz.read_bytes(), failures=2)
    monkeypatch.setenv("MNIST_KERAS_URL", server.url)

    run = run_flow(**sample | {"ingest": ingest.IngestParameters(source="keras")})
    with get_client(sync_client=True) as client:
        states = client.read_task_run_states(run.tasks["ingest"].id)
    names = [state.name for state in sorted(states, key=lambda state: state.timestamp)]
    assert names == ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed"]
    assert server.requests == 3

    again = run_flow(**sample | {"ingest": ingest.IngestParameters(source="keras")})
    assert again.states["ingest"] == "Cached"
    assert server.requests == 3


def test_a_damaged_record_of_an_earlier_run_costs_only_that_run(run_flow, sample, home, caplog):
    run_flow(**sample)
    damaged = {
        "empty": b"",
        "cut-short": b'{"state": "comple',
        "of-another-kind": b"[1, 2]",
        "binary": bytes(range(256)),
    }
    for name, content in damaged.items():
        (home / "runs" / name).mkdir()
        (home / "runs" / name / "manifest.json").write_bytes(content)

    after = run_flow(**sample)
    assert after.manifest["state"] == "completed"
    assert {step["state"] for name, step in after.steps.items() if name in STEPS} == {"reused"}
    seeded = run_flow(**seed(sample, 3))
    assert seeded.steps["train"]["changes"] == ["train.seed: 0 → 3"]
    runs = read_runs(home / "runs")
    assert {folder.name for folder, manifest in runs.items() if manifest is None} == damaged.keys()
    shown = {run.id: run.outcome for run in read_page(home / "runs", 1).runs}
    assert {name for name, outcome in shown.items() if outcome == "Unreadable"} == damaged.keys()
    for name in damaged:
        assert f"{home / 'runs' / name / 'manifest.json'} can't be read" in caplog.text


def test_a_champion_of_another_program_stops_the_run_before_it_trains(run_flow, sample):
    run_flow(**sample)
    client = connect()
    ours = client.get_model_version_by_alias("mnist", "champion").version
    foreign = client.create_model_version("mnist", source="file:///elsewhere")
    client.set_registered_model_alias("mnist", "champion", foreign.version)
    run = run_flow(**seed(sample, 9))
    assert run.states == {"check-registry": "Failed"}
    assert "make another version the champion: make promote VERSION=" in run.flow_run.state.message
    client.set_registered_model_alias("mnist", "champion", ours)
    assert run_flow(**sample).flow_run.state.is_completed()


def test_images_of_another_type_make_a_whole_run(run_flow, sample, arrays, tmp_path):
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].astype(np.float32)
    np.savez(tmp_path / "floats.npz", **arrays)
    floats = {"ingest": ingest.IngestParameters(source="path", path=tmp_path / "floats.npz")}
    run = run_flow(**sample | floats | {"validate": sample["validate"].model_copy(update={"dtype": "float32"})})
    assert run.flow_run.state.is_completed(), run.flow_run.state.message
    assert {path.name for path in run.folder.iterdir()} >= FILES
