"""Registering against a real MLflow registry: SQLite, as by default."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from artifacts.errors import RegistryError
from artifacts.records.base import Origin
from artifacts.records.release import Check, Verdict
from artifacts.settings import Settings
from artifacts.store import put_bytes
from tasks.register import find_registration, register_model
from tasks.registry.history import find_champion
from tasks.registry.versions import connect, read_version, registry_digest, version_by_alias

PROMOTE = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)
HOLD = PROMOTE.model_copy(update={"decision": "hold"})
# Of a training by other code than the sample's, which was called without a run.
ORIGIN = {
    "flow_run_id": None,
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "seconds": 1.0,
    "revision": None,
    "key": {"step": "train", "inputs": {}, "code": {"tasks.train": "0" * 64}, "libraries": {}},
}


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
    assert (registered.version.version, registered.champion_number, registered.previous_champion_number) == (1, 1, None)
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


def test_what_is_registered_already_is_found_and_nothing_is_written(registered, dataset, training):
    before = registry_digest()
    found = find_registration.fn(dataset, training, PROMOTE)
    assert (found.version, found.champion_number, found.created) == (registered.version, 1, False)
    assert registry_digest() == before
    # Whatever register would have to write is its own work.
    assert find_registration.fn(dataset, training, HOLD) is None
    recoded = training.model_copy(update={"origin": Origin.model_validate(ORIGIN)})
    assert find_registration.fn(dataset, recoded, PROMOTE) is None


def test_an_answer_of_the_registry_is_kept_until_that_changes(registered, dataset, training, evaluation, monkeypatch):
    def keys(of=training):
        inputs = {"dataset": dataset, "training": of, "verdict": PROMOTE}
        return [
            find_champion.cache_policy.key("find-champion", "tasks.registry.history", {"finish": True}),
            find_registration.cache_policy.key("find-registration", "tasks.register", inputs),
        ]

    before = keys()
    assert keys() == before
    # The same weights by other code are another version.
    recoded = training.model_copy(update={"origin": Origin.model_validate(ORIGIN)})
    assert [a == b for a, b in zip(keys(recoded), before, strict=True)] == [True, False]
    connect().set_registered_model_tag("mnist", "note", "by hand")
    assert [a == b for a, b in zip(keys(), before, strict=True)] == [False, False]
    # What isn't a file of its own can't be told by its bytes.
    for uri in ("http://127.0.0.1:1", "sqlite:///missing.db", f"{Settings().tracking_uri}?timeout=5"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert keys() == [None, None]


def test_champion_moves_on_the_gates_word_only(registered, dataset, other_training, evaluation):
    held = register_model.fn(dataset, other_training, evaluation, HOLD)
    assert held.created
    assert (held.version.version, held.champion_number) == (2, 1)
    assert version_by_alias(connect(), "challenger").version == 2
    assert find_champion.fn().version == 1
    promoted = register_model.fn(dataset, other_training, evaluation, PROMOTE)
    assert not promoted.created
    assert (promoted.champion_number, promoted.previous_champion_number) == (2, 1)
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


def test_an_experiment_that_was_deleted_in_mlflow_is_restored(registered, dataset, other_training, evaluation, caplog):
    client = connect()
    identifier = client.get_experiment_by_name("mnist").experiment_id
    client.delete_experiment(identifier)
    third = other_training.model_copy(
        update={"model": other_training.model.model_copy(update={"weights_digest": "e" * 64})}
    )
    assert register_model.fn(dataset, third, evaluation, HOLD).created
    assert client.get_experiment(identifier).lifecycle_stage == "active"
    assert "the experiment mnist was deleted in MLflow; it is restored" in caplog.text


def test_a_champion_of_another_program_is_named(registered):
    client = connect()
    foreign = client.create_model_version("mnist", source="file:///elsewhere")
    before = client.get_model_version_by_alias("mnist", "champion").version
    client.set_registered_model_alias("mnist", "champion", foreign.version)
    try:
        with pytest.raises(
            RegistryError, match=f"version {foreign.version} of mnist was registered by another program"
        ):
            find_champion.fn()
    finally:
        client.set_registered_model_alias("mnist", "champion", before)
        client.delete_model_version("mnist", foreign.version)
