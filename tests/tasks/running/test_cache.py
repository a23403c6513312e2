"""Keys change with what decides a result, and with nothing else; locks end with their holder."""

import os
import signal
import subprocess
import sys
import time

import pytest

from artifacts.errors import DataError
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.running.cache import StepCache
from tasks.running.code import code_of
from tasks.running.locks import FileLockManager
from tasks.train import train_model


def test_a_step_depends_on_what_it_imports_directly_or_not():
    assert {"tasks.train", "tasks.model.networks", "artifacts.dataset", "artifacts.store"} <= code_of(
        "tasks.train"
    ).keys()
    assert {"tasks.evaluate", "artifacts.pictures", "tasks.publish"}.isdisjoint(code_of("tasks.train"))
    assert "artifacts.pictures" in code_of("tasks.report")


def test_the_origin_of_data_and_the_date_of_a_model_are_no_part_of_a_key(dataset, training):
    def key(dataset):
        return StepCache().key("train", "tasks.train", {"dataset": dataset, "parameters": TrainParameters()})

    assert key(dataset) == key(dataset.model_copy(update={"source": "package", "x_test": dataset.y_test}))
    assert key(dataset) != key(dataset.model_copy(update={"digest": "0" * 64}))

    resaved = training.model.model_copy(update={"keras": training.model.h5})
    keys = [StepCache().key("evaluate", "tasks.evaluate", {"model": model}) for model in (training.model, resaved)]
    assert keys[0] == keys[1]


def test_the_arithmetic_that_is_found_out_is_part_of_the_key(dataset, monkeypatch):
    def key(*, bfloat16):
        monkeypatch.setattr("tasks.model.recipe.has_bfloat16", lambda: bfloat16)
        inputs = {"dataset": dataset, "parameters": TrainParameters()}
        return train_model.cache_policy.key("train", "tasks.train", inputs)

    assert key(bfloat16=True).changes_since(key(bfloat16=False)) == ("arithmetic: float32 → mixed_bfloat16",)


def test_a_source_that_cannot_be_read_has_no_key(tmp_path):
    parameters = IngestParameters(source="path", path=tmp_path / "nothing.npz")
    with pytest.raises(DataError, match="No such file"):
        ingest_data.cache_policy.key("ingest", "tasks.ingest", {"parameters": parameters})


def test_a_lock_is_held_by_one_and_released_once(home):
    first, second = FileLockManager(), FileLockManager()
    assert first.acquire_lock("key", "a")
    assert first.is_lock_holder("key", "a")
    assert not second.acquire_lock("key", "b", acquire_timeout=0)
    assert second.is_locked("key")
    with pytest.raises(ValueError, match="b doesn't hold"):
        second.release_lock("key", "b")
    first.release_lock("key", "a")
    assert second.acquire_lock("key", "b", acquire_timeout=0)
    second.release_lock("key", "b")
    assert not first.is_locked("key")


def test_a_lock_ends_with_its_holder_even_by_kill_9(home):
    code = (
        "import time; from tasks.running.locks import FileLockManager; manager = FileLockManager(); "
        "manager.acquire_lock('key', 'a'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiting = FileLockManager()
    assert waiting.is_locked("key")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    started = time.monotonic()
    assert waiting.acquire_lock("key", "b", acquire_timeout=10)
    assert time.monotonic() - started < 1
    waiting.release_lock("key", "b")
