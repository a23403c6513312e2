"""Ingest reads each source and refuses what isn't what it should be."""

import gzip

import numpy as np
import pytest

from artifacts.dataset import load_train, read_array
from artifacts.errors import DataError
from tasks.data import sources
from tasks.data.files import read_npz
from tasks.data.sources import DownloadError
from tasks.ingest import IngestParameters, digest_source, ingest_data


def from_path(path):
    return ingest_data.fn(IngestParameters(source="path", path=path))


def write_idx(folder, arrays, *, zipped=False):
    folder.mkdir()
    for name, file in sources.IDX_FILES.items():
        array = arrays[name]
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        content = header + array.tobytes()
        if zipped:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


@pytest.mark.expensive
def test_the_package_holds_the_real_mnist(home):
    dataset = ingest_data.fn(IngestParameters())
    assert dataset.source == "package"
    train = load_train(dataset)
    assert train.x.shape == (60_000, 28, 28, 1)
    assert train.x.dtype == np.float32
    assert (train.x.min(), train.x.max()) == (0, 1)
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert read_array(dataset.y_test)[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_npz_idx_and_gzipped_idx_are_the_same_data(home, tmp_path, sample_npz, mnist):
    datasets = [
        from_path(sample_npz),
        from_path(write_idx(tmp_path / "idx", mnist)),
        from_path(write_idx(tmp_path / "gz", mnist, zipped=True)),
    ]
    assert len({dataset.digest for dataset in datasets}) == 1
    assert read_array(datasets[2].x_test).tolist() == mnist["x_test"].tolist()


def test_a_named_source_must_be_mnist(home, sample_npz, monkeypatch):
    monkeypatch.setattr(sources, "package_file", lambda: sample_npz)
    monkeypatch.setattr(sources, "read_package", lambda file: read_npz(file.open("rb"), file))
    with pytest.raises(DataError, match="x_train of the source `package` isn't MNIST's"):
        ingest_data.fn(IngestParameters(source="package"))


def test_replaced_bytes_change_the_digest_of_the_source(tmp_path, arrays):
    file = tmp_path / "data.npz"
    parameters = IngestParameters(source="path", path=file)
    np.savez(file, **arrays)
    before = digest_source(parameters)
    assert digest_source(parameters) == before
    arrays["y_train"][0] = 9
    np.savez(file, **arrays)
    assert digest_source(parameters) != before


def test_a_server_that_is_not_there_is_named(home, monkeypatch):
    monkeypatch.setenv("MNIST_KERAS_URL", "http://127.0.0.1:9/mnist.npz")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/mnist\.npz can't be downloaded .* MNIST_KERAS_URL"):
        ingest_data.fn(IngestParameters(source="keras"))


def test_a_server_that_sends_something_else_is_refused(home, monkeypatch, serve):
    monkeypatch.setenv("MNIST_KERAS_URL", serve(b"something else").url)
    with pytest.raises(DownloadError, match="it sent something else than Keras"):
        ingest_data.fn(IngestParameters(source="keras"))


def test_a_server_that_falls_silent_is_given_up(home, monkeypatch, serve):
    monkeypatch.setenv("MNIST_KERAS_URL", serve(b"half", claims=1000).url)
    monkeypatch.setenv("MNIST_DOWNLOAD_TIMEOUT_SECONDS", "0.5")
    with pytest.raises(DownloadError, match="timed out"):
        ingest_data.fn(IngestParameters(source="keras"))


def test_a_server_that_never_ends_is_given_up(home, monkeypatch, serve):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", 1000)
    monkeypatch.setenv("MNIST_KERAS_URL", serve(bytes(2000)).url)
    with pytest.raises(DownloadError, match="it sent more than 1,000 bytes"):
        ingest_data.fn(IngestParameters(source="keras"))
    assert list((home / "downloads").iterdir()) == []


@pytest.mark.expensive
def test_a_server_that_drips_is_given_up(home, monkeypatch, serve):
    monkeypatch.setenv("MNIST_KERAS_URL", serve(bytes(100), pause=0.1).url)
    monkeypatch.setenv("MNIST_DOWNLOAD_TIMEOUT_SECONDS", "0.2")
    with pytest.raises(DownloadError, match="it hasn't sent everything after 2 s"):
        ingest_data.fn(IngestParameters(source="keras"))
