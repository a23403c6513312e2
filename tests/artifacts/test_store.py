"""The store keeps what it promises: bytes under their digest, whole or not at all."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from artifacts.errors import StoreError
from artifacts.store import StoredFile, put, put_bytes


def test_equal_bytes_are_stored_once_under_their_digest(home):
    first, second = put_bytes(".txt", b"seven"), put_bytes(".txt", b"seven")
    assert first == second
    assert first.sha256 == hashlib.sha256(b"seven").hexdigest()
    assert [path for path in (home / "store").rglob("*") if path.is_file()] == [first.path]


def test_a_loaded_reference_finds_its_file(home):
    reference = put_bytes(".txt", b"seven")
    assert StoredFile.model_validate_json(reference.model_dump_json()).read_bytes() == b"seven"


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"six")])
def test_a_spoilt_file_is_noticed(home, spoil):
    reference = put_bytes(".txt", b"seven")
    record = reference.model_dump_json()
    reference.path.chmod(0o644)
    spoil(reference.path)
    with pytest.raises(ValidationError, match=r"can't be read|was altered"):
        StoredFile.model_validate_json(record)
    with pytest.raises(StoreError, match=reference.sha256):
        reference.read_bytes()


def test_a_spoilt_file_is_mended_by_storing_it_again(home):
    reference = put_bytes(".txt", b"seven")
    reference.path.chmod(0o644)
    reference.path.write_bytes(b"six")
    assert put_bytes(".txt", b"seven").read_bytes() == b"seven"


def test_a_write_that_fails_leaves_nothing(home):
    def write(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        put(".txt", write)
    assert list((home / "store").iterdir()) == []


def test_a_link_shares_the_bytes(home, tmp_path):
    reference = put_bytes(".txt", b"seven")
    (tmp_path / "seven.txt").write_text("something else")
    reference.link_to(tmp_path / "seven.txt")
    assert (tmp_path / "seven.txt").samefile(reference.path)


def test_a_reference_out_of_the_store_is_refused(home):
    with pytest.raises(ValidationError):
        StoredFile.model_validate_json(json.dumps({"sha256": "../" * 20 + "abcd", "suffix": ".txt", "size": 1}))
