"""When a step's result is reused: the cache policy, the lock by which equal runs compute once, a result's origin."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import grimp
from filelock import FileLock, ReadWriteLock, Timeout
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.locking.protocol import LockManager
from prefect.logging import get_logger
from prefect.serializers import JSONSerializer
from prefect.settings import get_current_settings
from prefect.transactions import IsolationLevel
from pydantic import BaseModel
from pydantic_core import from_json

from artifacts import records
from artifacts.records import Key, Origin
from artifacts.settings import home
from tasks import sealed_json
from tasks.revision import git_revision, working_tree

# How results are written: a bit that flips in a figure of a record is noticed, too.
SERIALIZER = JSONSerializer[Any](jsonlib=sealed_json.__name__)
# The classes of results, as Prefect names them.
RECORDS = [
    f"{records.__name__}.{name}"
    for name, found in vars(records).items()
    if isinstance(found, type) and issubclass(found, records.Record)
]


def file_lock(name: str) -> FileLock:
    """A lock that every process with this ``MNIST_HOME`` shares, and that ends with its holder."""
    return FileLock(_locks() / name, thread_local=False)


def store_lock() -> ReadWriteLock:
    """The lock of what earlier runs left: a run holds it for reading while it goes, gc for writing while it removes.

    Between the reuse of a result and the end of the run, nothing else says that the result's files are needed.
    """
    return ReadWriteLock(_locks() / "store.db", is_singleton=False)


def _locks() -> Path:
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class FileLockManager(LockManager):
    """Locks cache keys with `flock(2)`, which the kernel releases when a process dies, however it dies.

    Prefect's own `FileSystemLockManager` leaves its lock behind after kill -9.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._held: dict[str, tuple[str, FileLock]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: Prefect copies a policy with its lock manager, and the copies must share what is held."""
        return self

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Take the lock, waiting at most `acquire_timeout` seconds; held until released or the process ends."""
        del hold_timeout  # the kernel knows when the holder is gone; nothing has to expire
        if self.is_lock_holder(key, holder):
            return True
        lock = file_lock(key)
        try:
            lock.acquire(timeout=-1 if acquire_timeout is None else acquire_timeout)
        except Timeout:
            return False
        self._held[key] = (holder, lock)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """See `acquire_lock`; the steps are synchronous, so this is never waited for."""
        return self.acquire_lock(key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Release a lock that `holder` holds.

        Raises:
            ValueError: Raised if `holder` doesn't hold it.
        """
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} doesn't hold the lock of {key}")
        self._held.pop(key)[1].release()

    def is_locked(self, key: str) -> bool:
        """Whether any process holds the lock."""
        return not self.wait_for_lock(key, timeout=0)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the lock."""
        return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until the lock is free; false if it isn't after `timeout` seconds."""
        try:
            with file_lock(key).acquire(timeout=-1 if timeout is None else timeout):
                return True
        except Timeout:
            return False

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """See `wait_for_lock`."""
        return self.wait_for_lock(key, timeout)


@dataclass
class StepCache(CachePolicy):
    """Reuses a step's result, in any run, as long as nothing that decides it has changed.

    The key holds the inputs' identity, the source of every module of the project that the step's own module imports,
    directly or not (comments and formatting aside), and the versions of the libraries that can change the result.

    Attributes:
        libraries: The distributions whose version counts.
        reads: Names and digests what the step reads besides its inputs (the bytes of a file, say), from its inputs.
            None from it says that nobody can tell: then the step always runs.
    """

    libraries: tuple[str, ...] = ()
    reads: Callable[..., dict[str, str] | None] | None = None
    isolation_level: IsolationLevel | None = IsolationLevel.SERIALIZABLE
    lock_manager: LockManager | None = field(default_factory=FileLockManager)

    def key(self, step: str, module: str, inputs: Mapping[str, Any]) -> Key | None:
        """What decides the result of `step`, a task defined in `module`, for these inputs; none if nobody can tell."""
        read = self.reads(**inputs) if self.reads else {}
        if read is None:
            return None
        return Key(
            step=step,
            inputs=dict(_digest_inputs(step, inputs)) | read,
            code=code_of(module),
            libraries=python_and_libraries(self.libraries),
        )

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """The key's digest, under which Prefect stores the result; none to store nothing."""
        del flow_parameters, kwargs
        key = self.key(task_ctx.task.name, task_ctx.task.fn.__module__, inputs)
        if key is None:
            return None
        forget_foreign(get_current_settings().results.local_storage_path / key.digest)
        return key.digest


def forget_foreign(kept: Path) -> None:
    """Delete a kept result that was altered, or isn't JSON of this project's own records, so that its step runs again.

    Such a file itself names what reads it: Prefect would unpickle it, or import the module that it names.
    """
    try:
        result = from_json(kept.read_bytes())  # by the parser that Prefect has
    except (OSError, ValueError):
        return  # there is none, or none that Prefect can read: it runs the step
    if not is_own(result):
        get_logger("mnist").warning(
            f"{kept} was altered, or isn't this project's: it is deleted, and the step runs again"
        )
        kept.unlink(missing_ok=True)


def is_own(result: Any) -> bool:
    """Whether a kept result is unaltered, is read as JSON, and names no class but this project's records."""
    named: list[Any] = []

    def note(found: dict[str, Any]) -> dict[str, Any]:
        named.extend(found[key] for key in ("__class__", "__exc_type__") if key in found)
        return found

    match result:
        case {"metadata": {"serializer": serializer}, "result": str(text), **others} if not others:
            with suppress(ValueError):
                sealed_json.loads(text, object_hook=note)
                return serializer == SERIALIZER.model_dump() and all(name in RECORDS for name in named)
    return False


def origin() -> Origin | None:
    """Who computes the result of the running task; none where it was called as `task.fn(…)`."""
    context = TaskRunContext.get()
    if context is None:
        return None
    task, now = context.task, datetime.now(UTC)
    policy = task.cache_policy
    return Origin(
        flow_run_id=str(context.task_run.flow_run_id) if context.task_run.flow_run_id else None,
        at=now,
        seconds=(now - context.start_time).total_seconds(),
        revision=git_revision(),
        key=policy.key(task.name, task.fn.__module__, context.parameters) if isinstance(policy, StepCache) else None,
    )


library_version = functools.cache(importlib.metadata.version)  # it parses all that a package says of itself


def python_and_libraries(names: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of libraries, by name."""
    return {"python": platform.python_version()} | {name: library_version(name) for name in names}


def code_of(module: str) -> dict[str, str]:
    """Digest by module of the source that `module` depends on: itself and what it imports of the project."""
    imports, digests = _code()
    return {name: digests[name] for name in sorted({module} | imports.find_upstream_modules(module))}


@functools.cache
def _code() -> tuple[grimp.ImportGraph, dict[str, str]]:
    """All modules' imports and digests, read at once: a file saved during a run isn't the code that the run loaded."""
    working_tree()  # keeps the patch of these very sources, for register
    imports = grimp.build_graph("tasks", "artifacts", cache_dir=None, exclude_type_checking_imports=True)
    return imports, {name: _sha256(ast.dump(ast.parse(_source(name)))) for name in imports.modules}


def digest_code(code: Mapping[str, str]) -> str:
    """One digest of some modules' digests."""
    return _sha256(json.dumps(code, sort_keys=True))


def _source(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source file")
    return Path(spec.origin).read_text(encoding="utf-8")


def _digest_inputs(step: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in inputs.items():
        if name == "parameters":
            for parameter, setting in value.model_dump(mode="json").items():
                yield f"{step}.{parameter}", json.dumps(setting)
        else:
            yield name, _sha256(json.dumps(_identity(value), sort_keys=True))


def _identity(value: Any) -> Any:
    """What of a record decides a result computed from it: its own word if it has one, else all but its origin."""
    if hasattr(value, "identity"):
        return value.identity()
    if isinstance(value, BaseModel):
        return {name: _identity(getattr(value, name)) for name in type(value).model_fields if name != "origin"}
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
    return value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
