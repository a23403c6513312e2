"""The store: files under their SHA-256. They are written under a temporary name, renamed, and verified when read."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from artifacts.errors import StoreError
from artifacts.settings import home


class StoredFile(BaseModel):
    """A reference to a file in the store. Loading a reference checks that the file exists and is unaltered.

    The validation context ``{"check_files": False}`` turns the check off, for records of past runs.

    Raises:
        ValueError: Raised if the file is missing, or its bytes have another digest. A cached result with such a
            reference counts as not cached, so Prefect runs the step again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the bytes, in hexadecimal.")
    suffix: str = Field(pattern=r"^(\.[a-z0-9]+)+$", description="The ending of the file's name, with its dot.")
    size: int = Field(ge=0, description="Size in bytes.")

    @property
    def path(self) -> Path:
        """The path of the file. Use `read_bytes` to read it, unless it was checked just before."""
        return home() / "store" / self.sha256[:2] / f"{self.sha256}{self.suffix}"

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if info.context and info.context.get("check_files") is False:
            return self
        try:
            if digest_file(self.path) == self.sha256:
                return self
        except OSError as error:
            raise ValueError(f"{self.path} can't be read: {error.strerror}") from error
        raise ValueError(f"{self.path} was altered: its bytes don't have the digest in its name")

    def read_bytes(self) -> bytes:
        """Read the file.

        Raises:
            StoreError: Raised if the file is missing, or its bytes have another digest.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise StoreError(f"{self.path} can't be read ({error.strerror}); run again with --refresh") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise StoreError(f"{self.path} was altered; delete it, and run again to create it again")
        return content

    def link_to(self, path: Path) -> None:
        """Make `path` another name of the same bytes (a hard link, no copy). An existing file is replaced."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        os.link(self.path, temporary)
        temporary.replace(path)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. The file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(suffix: str, write: Callable[[Path], object]) -> StoredFile:
    """Store the file that `write` makes.

    Args:
        suffix: The ending of the file's name, with its dot. Libraries choose the format by it.
        write: Writes the file to a path, whose name ends in `suffix`.

    Returns:
        The reference. Equal bytes are stored only once.
    """
    store = home() / "store"
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=store) as folder:
        temporary = Path(folder) / f"file{suffix}"
        try:
            write(temporary)
        except Exception as error:
            # Libraries report a full disk in their own ways, NumPy and HDF5 without the system's reason.
            if shutil.disk_usage(store).free < 1_000_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store)) from error
            raise
        sha256, size = digest_file(temporary), temporary.stat().st_size
        # Runs link to these bytes, so editing the file in place would alter all of them.
        temporary.chmod(0o444)
        path = store / sha256[:2] / f"{sha256}{suffix}"
        path.parent.mkdir(exist_ok=True)
        replace_durably(temporary, path)
    return StoredFile(sha256=sha256, suffix=suffix, size=size)


def put_bytes(suffix: str, content: bytes) -> StoredFile:
    """Store `content`; see `put`."""
    return put(suffix, lambda path: path.write_bytes(content))


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename a written file to its final name, so that its bytes and its name survive a power cut."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str) -> None:
    """Write a text file. A reader sees either the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        replace_durably(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
