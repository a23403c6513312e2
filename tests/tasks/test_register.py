"""Registering against a real MLflow registry: SQLite, as by default."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import RegistryError
from artifacts.records import Check, Verdict
from artifacts.store import put_bytes
from tasks.register import register_model
from tasks.registry import connect, find_champion, read_version, version_by_alias

PROMOTE = Verdict(
    decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), champion=None
)
HOLD = PROMOTE.model_copy(update={"decision": "hold"})


@pytest.fixture(scope="module")
def registered(dataset, training, evaluation):
    """The registration of the first model."""
    return register_model.fn(dataset, training, evaluation, PROMOTE)


@pytest.fixture
def other_training(training):
    """As if another training had given other weights."""
    model = training.model.model_copy(update={"weights_digest": "f" * 64})
    return training.model_copy(update={"model": model})


def test_the_first_version_becomes_champion_and_challenger(registered, training):
    assert registered.created
    assert (registered.version.version, registered.champion, registered.previous_champion) == (1, 1, None)
    client = connect()
    assert version_by_alias(client, "challenger") == version_by_alias(client, "champion") == registered.version
    assert registered.version.model == training.model


def test_its_lineage_parameters_and_metrics_are_kept(registered, dataset, training, evaluation):
    client = connect()
    version = client.get_model_version("mnist", "1")
    assert version.tags["weights_digest"] == training.model.weights_digest
    assert version.tags["data_digest"] == dataset.digest
    assert {"code_digest", "git_revision", "prefect_flow_run_id", "verdict"} <= version.tags.keys()
    run = client.get_run(registered.version.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == pytest.approx(evaluation.accuracy)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [1]


def test_the_same_model_gets_no_second_version(registered, dataset, training, evaluation):
    again = register_model.fn(dataset, training, evaluation, PROMOTE)
    assert not again.created
    assert again.version == registered.version
    assert len(connect().search_model_versions("name = 'mnist'")) == 1


def test_champion_moves_on_the_gates_word_only(registered, dataset, other_training, evaluation):
    held = register_model.fn(dataset, other_training, evaluation, HOLD)
    assert held.created
    assert (held.version.version, held.champion) == (2, 1)
    assert version_by_alias(connect(), "challenger").version == 2
    assert find_champion.fn().version == 1
    promoted = register_model.fn(dataset, other_training, evaluation, PROMOTE)
    assert not promoted.created
    assert (promoted.champion, promoted.previous_champion) == (2, 1)
    assert find_champion.fn().version == 2


def test_it_loads_in_a_fresh_process(registered):
    code = """
import os, mlflow
mlflow.set_tracking_uri(os.environ["URI"])
model = mlflow.keras.load_model("models:/mnist@champion")
print(model.count_params(), model.input_shape)
"""
    uri = f"sqlite:///{os.environ['MNIST_HOME']}/mlflow/mlflow.db"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"URI": uri}, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split("\n")[-2] == "3156098 (None, 28, 28, 1)"


def test_files_that_left_the_store_come_back_from_the_registry(registered, training):
    training.model.keras.path.unlink()
    training.model.h5.path.unlink()
    found = version_by_alias(connect(), "challenger")
    assert found.model.keras.read_bytes()
    assert found.model.h5.read_bytes()


def test_an_altered_file_of_the_registry_is_refused(registered, training):
    kept = training.model.h5.read_bytes()
    client = connect()
    home, run_id = Path(os.environ["MNIST_HOME"]), registered.version.mlflow_run_id
    in_registry = home / "mlflow" / "artifacts" / run_id / "artifacts" / "model.h5"
    in_registry.write_bytes(b"something else")
    training.model.h5.path.unlink()
    try:
        with pytest.raises(RegistryError, match=r"can't be trusted: model\.h5 of its MLflow run"):
            read_version(client, client.get_model_version("mnist", "1"))
    finally:
        in_registry.write_bytes(kept)
        put_bytes(".h5", kept)
