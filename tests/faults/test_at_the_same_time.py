"""Runs that go at the same time: what is equal is computed once, nothing mixes, and one champion comes out."""

import json
import os
import subprocess
import sys
import time

import pytest

from artifacts.store import digest_file
from tasks.registry.history import history
from tasks.registry.versions import connect, version_by_number
from tests.conftest import as_flags
from tests.flows.test_train import FILES, STEPS

# Whatever isn't shown to be worse becomes champion: the alias moves many times.
GENEROUS = {"minimum_accuracy": 0, "maximum_calibration_error": 1, "maximum_latency": 1000} | {
    "promote_if": "not worse",
    "margin": 1,
    "slice_margin": 1,
}


def start(command, parameters=(), *, cwd=None, environment=None):
    return subprocess.Popen(
        [sys.executable, "-m", "flows", command, *as_flags(dict(parameters))],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes, timeout=1500):
    """What each process printed, after all have ended well."""
    printed = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors
            printed.append(output + errors)
    finally:
        for process in processes:
            process.kill()
    assert [text for text in printed if "database is locked" in text] == []
    return printed


def read_manifests(home):
    """The manifests of the runs that completed, by their folder."""
    return {path.parent: json.loads(path.read_text()) for path in (home / "runs").glob("*/manifest.json")}


def check_that_nothing_is_mixed(home):
    """Each run's folder has its own model, its version's tags are its own, and the aliases' history is one line.

    Returns:
        The versions, in the order of their registration.
    """
    client = connect()
    versions = sorted(client.search_model_versions("name = 'mnist'"), key=lambda version: int(version.version))
    of_version = {int(version.version): client.get_model_version("mnist", version.version) for version in versions}
    digest_of_version = {number: version.tags["weights_digest"] for number, version in of_version.items()}
    assert len(set(digest_of_version.values())) == len(versions)

    # Replay: each verdict was reached against the champion that the verdict before it had left, and was carried out.
    moves = [move for move in history(client) if move.alias == "champion"]
    assert client.get_model_version_by_alias("mnist", "champion").version == moves[-1].after
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
    by_id = {folder.name: manifest for folder, manifest in read_manifests(home).items()}
    for move in moves:
        manifest = by_id.pop(move.by.removeprefix("flow run "))
        assert manifest["verdict"]["decision"] == "promote"
        assert manifest["verdict"]["rival"] == digest_of_version.get(move.before)
        assert manifest["version"] == manifest["champion_number"] == move.after
    for manifest in by_id.values():
        is_champion = manifest["champion_number"] == manifest["version"]
        assert is_champion or manifest["verdict"]["decision"] != "promote"
        assert manifest["verdict"]["rival"] == (None if is_champion else digest_of_version[manifest["champion_number"]])

    for folder, manifest in read_manifests(home).items():
        assert {path.name for path in folder.iterdir()} >= FILES
        model = version_by_number(client, manifest["version"]).model
        assert manifest["weights_digest"] == model.weights_digest == digest_of_version[manifest["version"]]
        assert digest_file(folder / "model.keras") == model.keras.sha256
        assert digest_file(folder / "model.h5") == model.h5.sha256
        assert json.loads((folder / "metrics.json").read_text())["n_test"] == 100
    return of_version


def test_two_different_runs_and_an_equal_one(prefect_server, home, sample_parameters, came):
    """The short form: their own server, two seeds, one of them twice."""
    from prefect.settings import PREFECT_API_URL

    environment = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
    }
    runs = [with_seed(sample_parameters, seed) for seed in (0, 1, 0)]
    began = time.monotonic()
    finish([start("train", run, environment=environment) for run in runs])
    assert sorted(trained_anew(manifest) for manifest in read_manifests(home).values()) == [False, True, True]
    assert len(check_that_nothing_is_mixed(home)) == 2
    came("3 runs at once, 2 of them equal", "recovered", time.monotonic() - began)


def with_seed(parameters, seed):
    return parameters | {"train": {**parameters["train"], "seed": seed}, "gate": GENEROUS}


@pytest.fixture
def its_home(own_deployed, monkeypatch):
    """The MNIST_HOME of the deployment, as this process's own."""
    monkeypatch.setenv("MNIST_HOME", str(own_deployed.home))
    return own_deployed.home


def start_in(own_deployed, command, parameters=()):
    return start(command, parameters, cwd=own_deployed.checkout, environment=dict(own_deployed.environment))


def logs(home):
    return "".join(path.read_text(errors="replace") for path in (home / "server").glob("*.log"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_equal_runs_train_once(own_deployed, its_home, sample_parameters, came):
    began = time.monotonic()
    finish([start_in(own_deployed, "train", with_seed(sample_parameters, 100)) for _ in range(8)])
    came("8 equal runs at once", "recovered", time.monotonic() - began)
    trained = [trained_anew(manifest) for manifest in read_manifests(its_home).values()]
    assert sorted(trained) == [False] * 7 + [True]
    assert len(check_that_nothing_is_mixed(its_home)) == 1
    assert "database is locked" not in logs(its_home)


def trained_anew(manifest):
    return next(step["state"] for step in manifest["steps"] if step["name"] == "train") == "computed"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_different_runs_all_complete(own_deployed, its_home, sample_parameters, came):
    before = set(read_manifests(its_home))
    n_before = len({manifest["version"] for manifest in read_manifests(its_home).values()})
    began = time.monotonic()
    finish([start_in(own_deployed, "train", with_seed(sample_parameters, seed)) for seed in range(8)])
    came("8 different runs at once", "recovered", time.monotonic() - began)
    new = {folder: manifest for folder, manifest in read_manifests(its_home).items() if folder not in before}
    assert len(new) == len({manifest["version"] for manifest in new.values()}) == 8
    assert all(manifest["state"] == "completed" for manifest in new.values())
    versions = check_that_nothing_is_mixed(its_home)
    assert len(versions) == n_before + 8
    # Each model was judged once, so the champion is the last version that was to be promoted.
    promoted = [number for number, version in versions.items() if version.tags["verdict"] == "promote"]
    assert "champion" in versions[promoted[-1]].aliases
    assert "database is locked" not in logs(its_home)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_clean_up_between_runs_loses_nothing(own_deployed, its_home, sample_parameters, came):
    """All that isn't needed goes, at any age, while runs begin, go and end."""
    again, new = with_seed(sample_parameters, 0), with_seed(sample_parameters, 50)
    everything = {"keep": {"days": 0, "runs": 100, "versions": 100}, "apply": True}
    began = time.monotonic()
    processes = [
        start_in(own_deployed, command, parameters)
        for command, parameters in (("train", new), ("gc", everything), ("train", again), ("gc", everything))
    ]
    finish(processes)
    finish([start_in(own_deployed, "gc", everything)])
    came("runs and clean-ups at once", "recovered", time.monotonic() - began)
    check_that_nothing_is_mixed(its_home)
    # What the new run left is there to be reused.
    before = set(read_manifests(its_home))
    finish([start_in(own_deployed, "train", new)])
    (manifest,) = [m for folder, m in read_manifests(its_home).items() if folder not in before]
    states = {step["name"]: step["state"] for step in manifest["steps"]}
    of_itself = STEPS[: STEPS.index("gate")]  # the others compare it with the champion, which it may be itself by now
    assert {states[step] for step in of_itself} == {"reused"}
