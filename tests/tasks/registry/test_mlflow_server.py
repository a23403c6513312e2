"""The registry behind a real `mlflow server` on loopback, which keeps the files too: what a team would set up."""

import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest

from artifacts.errors import RegistryError
from artifacts.records.release import Check, Verdict
from tasks.operations.gc import GcParameters, collect_garbage
from tasks.operations.promote import promote_version
from tasks.operations.score import score_images
from tasks.register import register_model
from tasks.registry.history import find_champion, history
from tasks.registry.versions import connect, read_version, version_by_alias, version_by_number

PROMOTE = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder in which the server keeps artifacts."""
    return tmp_path_factory.mktemp("mlflow-server")


@pytest.fixture(scope="module")
def server(files):
    """The address of a server with an empty database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--backend-store-uri=sqlite:///{files}/mlflow.db", f"--artifacts-destination={files}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options, "--host=127.0.0.1", f"--port={port}", "--workers=1"],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # its workers outlive the server
        stdout=(files / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not answers(url := f"http://127.0.0.1:{port}"):
            assert process.poll() is None, (files / "log").read_text()
            assert time.monotonic() < deadline, (files / "log").read_text()
            time.sleep(0.1)
        yield url
        process.terminate()
        process.wait(timeout=60)
        with pytest.raises(ProcessLookupError):  # nothing of its group is left
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url):
    try:
        return urlopen(f"{url}/health", timeout=5).status == 200  # noqa: S310 - our own server
    except OSError:
        return False


@pytest.fixture(scope="module", autouse=True)
def registrations(server, dataset, training, evaluation):
    """Two versions in the server's registry, the second of which is the champion; the files are the session's."""
    other = training.model.model_copy(update={"weights_digest": "f" * 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        first = register_model.fn(dataset, training, evaluation, PROMOTE)
        second = register_model.fn(dataset, training.model_copy(update={"model": other}), evaluation, PROMOTE)
        yield first, second


def test_versions_aliases_and_history_are_the_servers(registrations, files, training):
    first, second = registrations
    assert (first.created, first.champion_number, second.champion_number, second.previous_champion_number) == (
        True,
        1,
        2,
        1,
    )
    client = connect()
    assert version_by_alias(client, "challenger") == find_champion.fn() == second.version
    assert version_by_number(client, 1) == first.version
    assert [(move.alias, move.before, move.after) for move in history(client)] == [
        ("challenger", None, 1),
        ("champion", None, 1),
        ("challenger", 1, 2),
        ("champion", 1, 2),
    ]
    assert client.get_run(first.version.mlflow_run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    (stored,) = files.glob(f"**/{first.version.mlflow_run_id}/**/model.keras")
    assert stored.read_bytes() == training.model.keras.read_bytes()


def test_registering_again_changes_nothing(registrations, dataset, training, evaluation):
    again = register_model.fn(dataset, training, evaluation, PROMOTE.model_copy(update={"decision": "hold"}))
    assert (again.created, again.version) == (False, registrations[0].version)


def test_rollback_tries_the_servers_files_and_the_first_version_scores(dataset, tmp_path):
    assert promote_version.fn(None, "the second misreads sevens").version == 1
    assert find_champion.fn().version == 1
    move = history(connect())[-1]
    assert (move.before, move.after, move.why, move.verdict) == (2, 1, "the second misreads sevens", None)
    assert "the second misreads sevens" in connect().get_registered_model("mnist").description

    np.savez(tmp_path / "images.npz", np.load(dataset.x_test.path))
    scoring = score_images.fn(find_champion.fn(), tmp_path / "images.npz", tmp_path / "labels.csv")
    assert (scoring.version, scoring.n_images, scoring.drift) == (1, 100, ())


def test_it_loads_in_a_fresh_process_that_knows_only_the_address(server, tmp_path):
    code = "import mlflow; print(mlflow.keras.load_model('models:/mnist@champion').count_params())"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split()[-1] == "3156098"


def test_files_that_left_the_store_come_back_from_the_server(training):
    expected = [training.model.keras.sha256, training.model.h5.sha256]
    for file in (training.model.keras, training.model.h5):
        file.path.unlink()
    model = version_by_alias(connect(), "challenger").model
    assert [model.keras.sha256, model.h5.sha256] == expected
    assert model.keras.read_bytes()
    assert model.h5.read_bytes()


def test_a_file_altered_on_the_server_is_refused(registrations, files, training):
    client, run_id = connect(), registrations[1].version.mlflow_run_id
    (stored,) = files.glob(f"**/{run_id}/**/model.h5")
    kept = stored.read_bytes()
    stored.write_bytes(b"something else")
    training.model.h5.path.unlink()
    try:
        with pytest.raises(RegistryError, match=r"version 2 of mnist can't be trusted: model\.h5"):
            read_version(client, client.get_model_version("mnist", "2"))
    finally:
        stored.write_bytes(kept)
        assert version_by_number(client, 2).model.h5.read_bytes() == kept


def test_gc_removes_a_version_and_its_run_from_the_server(
    registrations, dataset, training, evaluation, prefect_server, tmp_path, monkeypatch
):
    hold = PROMOTE.model_copy(update={"decision": "hold"})
    third, fourth = (
        register_model.fn(
            dataset,
            training.model_copy(update={"model": training.model.model_copy(update={"weights_digest": name * 64})}),
            evaluation,
            hold,
        )
        for name in "34"
    )
    monkeypatch.setenv("MNIST_HOME", str(tmp_path))  # the session's store is the other tests'
    collected = collect_garbage.fn(GcParameters(days=0, runs=1, versions=1, wait_minutes=0), True)
    rows = {row.what: (row.removed, row.names) for row in collected.rows}
    assert rows["model versions"] == (1, ("3",))
    client = connect()
    left = {int(version.version) for version in client.search_model_versions("name = 'mnist'")}
    assert left == {1, 2, 4}  # the champion, the one that a person replaced, the newest
    stages = [client.get_run(r.version.mlflow_run_id).info.lifecycle_stage for r in (*registrations, third, fourth)]
    assert stages == ["active", "active", "deleted", "active"]
