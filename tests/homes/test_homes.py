"""Homes of version 0.1.0 keep working: history, rollback, promote, score, gc, reproduce, the pages, the next run.

`make_home.py` made the archive: two versions of the network `compact`, the second one the champion. It is unpacked
somewhere else than it was made, so these tests also see a home that was moved.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from artifacts.index import read_page
from artifacts.settings import CHECKOUT
from artifacts.store import digest_file
from flows.gc import gc
from flows.promote import promote, rollback
from flows.score import score
from tasks.gate import GateParameters
from tasks.ingest import IngestParameters
from tasks.model.recipe import TrainParameters
from tasks.operations.gc import GcParameters
from tasks.registry.history import champions, history
from tasks.registry.versions import connect, version_by_alias
from tests.conftest import TINY
from tests.flows.conftest import Run
from tests.flows.test_train import STEPS

ARCHIVE = Path(__file__).with_name("0.1.0.tar.xz")
# As in make_home.py.
RUN = {
    "validate": TINY,
    "train": TrainParameters(preset="compact", epochs=1, batch_size=32, precision="float32", validation_share=0.1),
    "gate": GateParameters(
        minimum_accuracy=0,
        maximum_calibration_error=1,
        maximum_latency=1000,
        promote_if="not worse",
        margin=1,
        slice_margin=1,
    ),
}


# As much as can go.
ALL = GcParameters(days=0, runs=1, versions=1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home, unpacked anew."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.setenv("MNIST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def results(prefect_server, home):
    """The home's kept results, in place of the session's."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}):
        yield


def digests(folder):
    return {file.name: digest_file(file) for file in folder.iterdir()}


def champion():
    return version_by_alias(connect(), "champion").version


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size < 6_000_000


def test_history_rollback_promote_and_score(home, results, sample_npz, tmp_path):
    assert champions(history(connect())) == [1, 2]
    rollback("a try")
    assert champion() == 1
    promote(2, "another try")
    assert champion() == 2
    assert [(move.before, move.after, move.verdict) for move in history(connect()) if move.alias == "champion"] == [
        (None, 1, "promote"),
        (1, 2, "promote"),
        (2, 1, None),
        (1, 2, None),
    ]
    scoring = score(sample_npz, tmp_path / "labels.csv")
    assert (scoring.version, scoring.n_images) == (2, 100)


def test_the_files_of_a_version_are_those_of_this_home(home, results):
    """The database had the paths of the place where the home was made."""
    client = connect()
    for version in client.search_model_versions("name = 'mnist'"):
        place = client.get_run(version.run_id).info.artifact_uri
        assert place == f"{(home / 'mlflow' / 'artifacts').as_uri()}/{version.run_id}/artifacts"
        assert (home / "mlflow" / "artifacts" / version.run_id / "artifacts" / "model.h5").exists()


def test_the_index_and_the_reports(home):
    page = read_page(home / "runs", 1)
    assert {(run.manifest.version, run.outcome) for run in page.runs} == {(1, "Promoted"), (2, "Promoted")}
    for run in page.runs:
        assert run.metrics["n_test"] == 100
        assert "Learning curves" in (home / "runs" / run.id / run.files["report"]).read_text()


def test_gc_keeps_the_champion_and_the_one_before_it(home, results):
    everything = {path for path in (home / "store").rglob("*") if path.is_file()}
    gc(ALL, apply=True)
    assert {path for path in (home / "store").rglob("*") if path.is_file()} == everything
    assert len(list((home / "runs").iterdir())) == 2


def test_the_next_run_computes_each_step_once_and_says_why(home, results, sample_npz, caplog):
    from flows.train import mnist

    def run():
        parameters = RUN | {"ingest": IngestParameters(source="path", path=sample_npz)}
        parameters["train"] = parameters["train"].model_copy(update={"seed": 1})
        state = mnist(**parameters, return_state=True)
        return Run(str(state.state_details.flow_run_id), home)

    first, second = run(), run()
    assert {name for name in STEPS if first.steps[name]["state"] == "computed"} == set(STEPS)
    for name in STEPS:
        reason = "; ".join(first.steps[name]["changes"])
        assert "code of " in reason, f"{name}: {reason}"
        assert len(reason) < 500, f"{name}: {reason}"
    assert "was altered" not in caplog.text
    assert {name for name in STEPS if second.steps[name]["state"] == "reused"} == set(STEPS)
    # The weights are those of version 2, but other code trained them.
    old = {run.manifest.version: run.manifest for run in read_page(home / "runs", 1).runs}
    assert first.manifest["weights_digest"] == old[2].weights_digest
    assert first.manifest["version"] == champion() == 3

    files = digests(home / "runs" / old[2].flow_run_id)
    assert "model.keras" in files
    gc(ALL, apply=True)
    assert [int(version.version) for version in connect().search_model_versions("name = 'mnist'")] == [3, 2]
    assert {folder.name for folder in (home / "runs").iterdir()} >= {old[2].flow_run_id, second.id}
    assert not (home / "runs" / old[1].flow_run_id).exists()
    assert digests(home / "runs" / old[2].flow_run_id) == files
    rollback("after gc")
    assert champion() == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_and_reproduce(home, sample_npz, tmp_path):
    """By the command line, with a server on the home's own Prefect database."""

    def command(*arguments, code=0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=CHECKOUT,
            env=environment | {"MNIST_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    assert len(re.findall(r"champion .*promote, by flow run", command("history"))) == 2
    assert "version 1 is the champion again" in command("rollback", "--reason=a try")
    assert "version 2 is the champion now" in command("promote", "--version=2", "--reason=back")
    assert "version 2 scored 100 images" in command(
        "score", f"--images={sample_npz}", f"--output={tmp_path / 'labels.csv'}"
    )
    assert "nothing was removed" in command("gc", "--keep.days=0", "--keep.runs=1")
    command("gc", "--keep.days=0", "--keep.runs=1", "--apply")
    shallow = subprocess.run(
        ["git", "cat-file", "-e", "609dced"], cwd=CHECKOUT, check=False, capture_output=True
    ).returncode
    if shallow:
        pytest.skip("this clone has no commit 609dced, so nothing was proved about reproduce")
    assert "version 2 was made again, identical in weights and figures" in command("reproduce", "--version=2")
