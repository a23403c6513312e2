"""What Prefect kept of a step can't run code when it is read, whatever was put there."""

import base64
import json
import pickle
import sys
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

from artifacts.records.data import Dataset
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
