"""A training that was killed goes on where it was, and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from artifacts.dataset import load_train
from tasks.model.checkpoint import Checkpoint
from tasks.model.fit import build, fit
from tasks.model.recipe import TrainParameters
from tasks.model.saved import digest_weights, import_keras
from tasks.running.logs import Progress
from tasks.train import fit_teachers, hold_out
from tests.conftest import as_flags

pytestmark = pytest.mark.expensive  # it trains networks

# Six validations, within epochs too; dropout is on.
PARAMETERS = TrainParameters(epochs=3, batch_size=16, precision="float32", validation_share=0.1)
# Batch normalisation, and images that are changed at random.
COMPACT = TrainParameters(preset="compact", epochs=2, batch_size=16, precision="float32", validation_share=0.1)


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledAfter(Checkpoint):
    """Ends the training once it has saved so many checkpoints."""

    def __init__(self, key, n):
        super().__init__(key)
        self.n = n

    def save(self, model, history):
        super().save(model, history)
        if len(history) == self.n:
            raise KilledError


@pytest.fixture(scope="module")
def splits(dataset):
    return hold_out(load_train(dataset), 0.1)


def train(splits, checkpoint, parameters=PARAMETERS):
    """Train as in a fresh process."""
    keras = import_keras()
    keras.utils.clear_session()
    model = build(parameters.network, "float32", seed=0)
    history = fit(model, *splits, parameters, checkpoint, Progress())
    return digest_weights(model), [epoch.model_dump(exclude={"seconds"}) for epoch in history]


@pytest.fixture(scope="module")
def undisturbed(splits):
    return train(splits, Checkpoint(None))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_it_ends_with_the_same_weights_and_history(n, splits, undisturbed, home):
    with pytest.raises(KilledError):
        train(splits, KilledAfter("key", n))
    assert [file.name for file in (home / "checkpoints" / "key").iterdir()] == ["training.npz"]
    assert train(splits, Checkpoint("key")) == undisturbed


def test_so_does_a_training_on_changed_images(splits, home):
    with pytest.raises(KilledError):
        train(splits, KilledAfter("key", 1), COMPACT)
    assert train(splits, Checkpoint("key"), COMPACT) == train(splits, Checkpoint(None), COMPACT)


def test_what_a_distilled_network_and_its_teachers_had_learnt_is_kept(splits, home):
    keras = import_keras()
    parameters = COMPACT.model_copy(update={"teachers": 2})
    folder = home / "checkpoints" / "key"

    def distil(checkpoint):
        keras.utils.clear_session()
        progress = Progress(3)
        teachers = fit_teachers(*splits, parameters, "key", progress)
        model = build(parameters.network, "float32", seed=0)
        fit(model, *splits, parameters, checkpoint, progress, teachers)
        return [digest_weights(network) for network in (*teachers, model)]

    with pytest.raises(KilledError):
        distil(KilledAfter("key", 1))
    teachers = {file: file.stat().st_mtime_ns for file in folder.glob("teacher-*")}
    assert {file.name for file in teachers} == {"teacher-0.npz", "teacher-1.npz"}
    resumed = distil(Checkpoint("key"))
    assert len(set(resumed)) == 3
    assert {file: file.stat().st_mtime_ns for file in teachers} == teachers
    shutil.rmtree(folder)
    assert distil(Checkpoint("key")) == resumed


def test_a_spoilt_checkpoint_is_said_and_not_used(splits, undisturbed, home, caplog):
    with pytest.raises(KilledError):
        train(splits, KilledAfter("key", 3))
    file = home / "checkpoints" / "key" / "training.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert train(splits, Checkpoint("key")) == undisturbed
    assert "can't be read" in caplog.text


def test_kill_9_while_it_trains(prefect_server, home, sample_parameters):
    from prefect.settings import PREFECT_API_URL

    parameters = sample_parameters | {"train": sample_parameters["train"] | {"epochs": 12, "batch_size": 16}}
    flags = as_flags(parameters)

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "flows", "train", *flags],
            env=os.environ
            | {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    deadline = time.monotonic() + 120
    while not list((home / "checkpoints").glob("*/training.npz")):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, errors = (second := start()).communicate(timeout=240)
    assert second.returncode == 0, errors
    assert "going on from epoch" in errors
    assert list((home / "checkpoints").iterdir()) == []
    manifests = [json.loads(path.read_text()) for path in (home / "runs").glob("*/manifest.json")]
    assert [(manifest["state"], manifest["version"]) for manifest in manifests] == [("completed", 1)]
