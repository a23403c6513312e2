"""Files: read arrays from untrusted files, in bounded memory. Nothing is ever unpickled."""

import gzip
import lzma
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from artifacts.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]
# The arrays of a data set, with the names that Keras gives them.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# Ten times MNIST fits. A file that claims more is a mistake or a decompression bomb. The claim is checked before
# anything is unpacked. With this limit, ingest and validate need less than 4 GB of memory.
MAX_BYTES = 600_000_000
# The directory of a zip file, in bytes. `zipfile` makes objects of all its entries before it returns one; a thousand
# arrays take a tenth of this.
MAX_DIRECTORY = 1_000_000
# Bytes of the record at the end of a zip file, and of what stands before it if the file has the larger form.
ZIP_END, ZIP64_LOCATOR = 22, 20
# What libraries raise for wrong bytes. RuntimeError: a zip with a password, or with an unknown compression.
DAMAGED = (ValueError, TypeError, EOFError, KeyError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


def size_of(file: Path) -> int:
    """The size of a file in bytes.

    Raises:
        DataError: Raised if it is a folder, or a pipe or device, which may never end.
        OSError: Raised if it doesn't exist.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is no regular file; copy its content into a regular file")
    return status.st_size


def read_npz(stream: IO[bytes], file: Path) -> Arrays:
    """Read a Keras-style ``.npz``, without ever unpickling.

    Args:
        stream: The file's bytes, as a seekable stream.
        file: The file's name, for messages.

    Raises:
        DataError: Raised if it isn't an ``.npz``, is damaged, lacks an array, or claims too large arrays.
    """
    with reading(file):
        check_directory(stream, file)
        with zipfile.ZipFile(stream) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise DataError(
                    f"{file} unpacks to {size:,} bytes; at most {MAX_BYTES:,} are read, so give it fewer images"
                )
            missing = sorted(name for name in ARRAYS if f"{name}.npy" not in entries)
            if missing:
                raise DataError(f"{file} lacks the arrays {', '.join(missing)}; add them with numpy.savez")
            for name in ARRAYS:
                entry = entries[f"{name}.npy"]
                with archive.open(entry) as member:
                    shape, _, dtype = read_npy_header(member)
                    held = entry.file_size - member.tell()
                if dtype.hasobject:
                    raise DataError(f"{name} in {file} holds pickled objects, which are never loaded; save it as uint8")
                # NumPy would allocate as much as the header claims.
                if (claimed := math.prod(shape) * dtype.itemsize) != held:
                    raise DataError(
                        f"{name} in {file} claims {claimed:,} bytes in its header, shape {shape}, and holds {held:,}; "
                        "get the file again"
                    )
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as npz:
            return {name: np.ascontiguousarray(npz[f"{name}.npy"]) for name in ARRAYS}


def check_directory(stream: IO[bytes], file: Path) -> None:
    """Check the size of a zip file's directory before it is read.

    Args:
        stream: The file's bytes, as a seekable stream. It is left at its beginning.
        file: The file's name, for messages.

    Raises:
        DataError: Raised if the directory is too large.
    """
    # The record of the directory is the last of the file, but for a comment; `zipfile` looks for it in the same bytes.
    length = stream.seek(0, os.SEEK_END)
    stream.seek(max(length - 2**16 - ZIP_END - ZIP64_LOCATOR, 0))
    end = stream.read()
    stream.seek(0)
    start = end.rfind(b"PK\5\6")
    if start < 0:
        return  # no zip file, as `zipfile` will say
    size = int.from_bytes(end[start + 12 : start + 16], "little")
    # The larger form is for more than 65,535 entries, or 4 GB.
    if size > MAX_DIRECTORY or end[max(start - ZIP64_LOCATOR, 0) : start].startswith(b"PK\6\7"):
        raise DataError(f"{file} has too many entries; save the four arrays alone, with numpy.savez")


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an ``.npy``: the array's shape, whether it is in Fortran order, its dtype.

    Raises:
        ValueError: Raised if there is no such header.
    """
    try:
        if np.lib.format.read_magic(stream) == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # a header is a Python literal, and a strange one makes NumPy raise almost any error
        raise ValueError(f"no header of an array ({error})") from error


def read_idx(raw: IO[bytes], file: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not. http://yann.lecun.com/exdb/mnist describes the format.

    Args:
        raw: The file's bytes.
        file: The file's name, for messages. The file is gzipped if the name ends in ``.gz``.

    Raises:
        DataError: Raised if it isn't an IDX file, or its size isn't what its header says.
    """
    with reading(file), unzipped(raw, file) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
            raise DataError(
                f"{file} isn't an IDX file of unsigned bytes: it starts with {magic.hex() or 'nothing'}, "
                "not 00000803 (images) or 00000801 (labels); get the file again"
            )
        shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(magic[3]))
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise DataError(
                f"{file} claims {size:,} bytes in its header, shape {shape}; get the file again (at most {MAX_BYTES:,})"
            )
        content = stream.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise DataError(
            f"{file} claims {size:,} bytes in its header, shape {shape}, and holds {found}; get the file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def unzipped(stream: IO[bytes], file: Path) -> IO[bytes]:
    """The stream, unzipped if the file's name ends in ``.gz``."""
    return cast(IO[bytes], gzip.open(stream)) if file.suffix == ".gz" else stream


@contextmanager
def reading(*files: Path) -> Iterator[None]:
    """Turn any error about a file into one line that names the file.

    Raises:
        DataError: Raised if a file is missing, unreadable, damaged or of another kind.
    """
    try:
        yield
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.filename:  # errors about a file's content have no strerror
            reason = f"{error.strerror}; check the name, and who may read it"
            raise DataError(f"{error.filename} can't be read: {reason}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{files[0]} is damaged or of another kind: {reason}; get the file again, or name another"
        ) from error
