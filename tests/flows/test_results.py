"""What Prefect kept of a step can't run code when it is read, whatever was put there."""

import base64
import importlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from prefect import flow
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from artifacts.dataset import read_array
from artifacts.errors import CodeError, DataError
from artifacts.records.data import Dataset
from tasks import ingest
from tasks.data import sources
from tasks.ingest import IngestParameters, ingest_data
from tasks.running import sealed_json
from tasks.running.cache import SERIALIZER


@flow(result_serializer=SERIALIZER)
def only_ingest(parameters: IngestParameters) -> Dataset:
    return ingest_data(parameters)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(record, mark):
    serializer = {"type": "pickle", "picklelib": "pickle", "picklelib_version": None}
    payload = base64.encodebytes(pickle.dumps(Touch(mark))).decode()
    return record | {"metadata": record["metadata"] | {"serializer": serializer}, "result": payload}


def pickled_without_saying_so(record, mark):
    return {"result": pickled(record, mark)["result"]}


def of_another_class(record, mark):
    return record | {"result": sealed_json.dumps({"__class__": "touches_a_file.Record", "data": {}})}


def an_exception(record, mark):
    return record | {"result": sealed_json.dumps([{"__exc_type__": "touches_a_file.Error", "message": ""}])}


def by_another_decoder(record, mark):
    serializer = record["metadata"]["serializer"] | {"object_decoder": "touches_a_file.decode"}
    return record | {"metadata": record["metadata"] | {"serializer": serializer}}


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A file that isn't there; the module `touches_a_file` makes it when it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "touches_a_file.py").write_text(
        f"open({str(mark)!r}, 'w')\nclass Record: pass\nclass Error(Exception): pass"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "touches_a_file", raising=False)
    return mark


@pytest.mark.parametrize(
    "tamper", [pickled, pickled_without_saying_so, of_another_class, an_exception, by_another_decoder]
)
def test_a_result_that_would_run_code_is_not_read(prefect_server, home, sample_npz, mark, tamper):
    parameters = IngestParameters(source="path", path=sample_npz)
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}):
        first = only_ingest(parameters)
        kept = home / "results" / first.origin.key.digest
        kept.write_text(json.dumps(tamper(json.loads(kept.read_text()), mark)))

        second = only_ingest(parameters)
        third = only_ingest(parameters)

    assert not mark.exists()
    assert second.origin.at > first.origin.at
    assert second.digest == first.digest
    assert third == second


def test_a_result_is_not_read_if_a_bit_of_it_flipped():
    sealed = sealed_json.dumps({"accuracy": 0.9942}).encode()
    for position in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match=r"digest|codec"):
            sealed_json.loads(flipped.decode())
    assert sealed_json.loads(sealed.decode()) == {"accuracy": 0.9942}


def test_data_that_are_replaced_between_digest_and_reading_are_refused(
    prefect_server, home, sample_npz, arrays, tmp_path, monkeypatch
):
    file, other = tmp_path / "data.npz", tmp_path / "other.npz"
    shutil.copy(sample_npz, file)
    arrays["x_train"][:, 14, 14] ^= 1
    np.savez(other, **arrays)
    read_once = sources.read_once

    def replaced_first(path):
        other.replace(path)
        return read_once(path)

    monkeypatch.setattr(sources, "read_once", replaced_first)
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}):
        with pytest.raises(DataError, match=r"data.npz was replaced while it was read; run again"):
            only_ingest(IngestParameters(source="path", path=file))
        assert not (home / "store").exists()
        monkeypatch.undo()
        monkeypatch.setenv("MNIST_HOME", str(home))
        again = only_ingest(IngestParameters(source="path", path=file))
    assert (read_array(again.x_train) == arrays["x_train"]).all()


def test_code_that_a_step_loads_behind_the_keys_back_stops_it(prefect_server, home, sample_npz, tmp_path, monkeypatch):
    """The import graph can't see an import by name: the step would be reused whatever that module says."""
    monkeypatch.setattr("tasks.running.code.CHECKOUT", tmp_path)
    (tmp_path / "hidden.py").write_text("X = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hidden", raising=False)
    digest_arrays = ingest.digest_arrays

    def loads_more(arrays):
        importlib.import_module("hidden")
        return digest_arrays(arrays)

    monkeypatch.setattr(ingest, "digest_arrays", loads_more)
    with (
        temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}),
        pytest.raises(CodeError, match="the step ingest loaded hidden of this checkout"),
    ):
        only_ingest(IngestParameters(source="path", path=sample_npz))
