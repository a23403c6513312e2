"""When a step's result is reused: the cache policy, the lock that lets equal runs compute once, a result's origin."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.locking.protocol import LockManager
from prefect.logging import get_logger
from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE, get_current_settings, temporary_settings
from prefect.transactions import IsolationLevel
from pydantic import BaseModel
from pydantic_core import from_json

from artifacts.errors import CodeError
from artifacts.records.base import Key, Origin, Record
from tasks.running import sealed_json
from tasks.running.code import code_of, loaded_code, unseen
from tasks.running.locks import FileLockManager, store_lock
from tasks.running.revision import git_revision

# How results are written. A flipped bit in a record is noticed.
SERIALIZER = JSONSerializer[Any](jsonlib=sealed_json.__name__)


class _Begun(NamedTuple):
    """The state when a step began: its key, and the modules that the process had loaded."""

    key: Key
    modules: frozenset[str]


_BEGUN: dict[UUID, _Begun] = {}  # by task run


@dataclass
class StepCache(CachePolicy):
    """Reuses a step's result in every run, as long as nothing that decides the result has changed.

    The key has the identity of the inputs, the code of every module of the project that the step's own module imports,
    directly or not, and the versions of the libraries that can change the result. Comments, docstrings and layout don't
    count.

    Attributes:
        libraries: The distributions whose version counts.
        reads: A function of the inputs. It names and digests what else the step reads, for example the bytes of a
            file. If it returns None, the step always runs.
    """

    libraries: tuple[str, ...] = ()
    reads: Callable[..., dict[str, str] | None] | None = None
    isolation_level: IsolationLevel | None = IsolationLevel.SERIALIZABLE
    lock_manager: LockManager | None = field(default_factory=FileLockManager)

    def key(self, step: str, module: str, inputs: Mapping[str, Any]) -> Key | None:
        """What decides the result of `step`, a task in `module`, for these inputs. None if `reads` returns None."""
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
        """The digest of the key, under which Prefect stores the result. None means that nothing is stored."""
        del flow_parameters, kwargs
        key = self.key(task_ctx.task.name, task_ctx.task.fn.__module__, inputs)
        if key is None:
            return None
        _BEGUN[task_ctx.task_run.id] = _Begun(key, frozenset(sys.modules))
        forget_foreign(get_current_settings().results.local_storage_path / key.digest)
        return key.digest


def forget_foreign(kept: Path) -> None:
    """Delete a kept result that was altered, or isn't JSON of this project's records, so that its step runs again.

    The file itself says how Prefect reads it. Prefect would unpickle it, or import any module that it names.
    """
    try:
        result = from_json(kept.read_bytes())  # with the same parser as Prefect
    except (OSError, ValueError):
        return  # there is no result, or Prefect can't read it either, and runs the step
    if not is_own(result):
        get_logger("mnist").warning(
            f"{kept} was altered, or isn't from this project; it is deleted, and the step runs again"
        )
        kept.unlink(missing_ok=True)


def is_own(result: Any) -> bool:
    """Whether a kept result is unaltered, is read as JSON, and names only this project's record classes."""
    named: list[Any] = []

    def note(found: dict[str, Any]) -> dict[str, Any]:
        named.extend(found[key] for key in ("__class__", "__exc_type__") if key in found)
        return found

    match result:
        case {"metadata": {"serializer": serializer}, "result": str(text), **others} if not others:
            with suppress(ValueError):
                sealed_json.loads(text, object_hook=note)
                return serializer == SERIALIZER.model_dump() and set(named) <= set(record_classes())
    return False


def record_classes() -> list[str]:
    """The classes of results, by the names that Prefect gives them: all record classes that this process loaded."""
    found, classes = [Record], []
    while found:
        record = found.pop()
        classes.append(f"{record.__module__}.{record.__qualname__}")
        found += record.__subclasses__()
    return classes


def running_key() -> Key | None:
    """The key of the running task when it began. None if the task has no key, or runs outside of a flow run."""
    context = TaskRunContext.get()
    begun = _BEGUN.get(context.task_run.id) if context else None
    return begun.key if begun else None


def origin() -> Origin | None:
    """Which run computes the result of the running task, and from what. None if it was called as `task.fn(…)`.

    Raises:
        CodeError: Raised if the step has loaded code of this checkout that isn't in its key.
    """
    context = TaskRunContext.get()
    if context is None:
        return None
    now = datetime.now(UTC)
    begun = _BEGUN.get(context.task_run.id)
    if begun and (hidden := unseen(sys.modules.keys() - begun.modules, begun.key.code)):
        raise CodeError(
            f"the step {begun.key.step} loaded {', '.join(hidden)} of this checkout, which its cache key can't see; "
            "import it by an import statement, from a package with an __init__.py"
        )
    return Origin(
        flow_run_id=str(context.task_run.flow_run_id) if context.task_run.flow_run_id else None,
        at=now,
        seconds=(now - context.start_time).total_seconds(),
        revision=git_revision(),
        key=begun.key if begun else None,
    )


library_version = functools.cache(importlib.metadata.version)  # each call parses the whole metadata of a package


def python_and_libraries(names: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of some libraries, by name."""
    return {"python": platform.python_version()} | {name: library_version(name) for name in names}


def _digest_inputs(step: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in inputs.items():
        if name == "parameters":
            for parameter, setting in value.model_dump(mode="json").items():
                yield f"{step}.{parameter}", json.dumps(setting)
        else:
            yield name, _sha256(json.dumps(_identity(value), sort_keys=True))


def _identity(value: Any) -> Any:
    """What of a record decides a result computed from it: its `identity()` if it has one, else all but its origin."""
    if hasattr(value, "identity"):
        return value.identity()
    if isinstance(value, BaseModel):
        return {name: _identity(getattr(value, name)) for name in type(value).model_fields if name != "origin"}
    if isinstance(value, dict):
        return {name: _identity(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
    return value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def reusing_results(refresh: bool) -> Iterator[None]:
    """A context for a whole run: its steps reuse the results of earlier runs, and gc removes none of those meanwhile.

    Args:
        refresh: Compute every step again instead.

    Raises:
        CodeError: Raised if it is unclear which code runs, or if cache keys can't see some of it.
    """
    loaded_code()
    compute_again = temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}) if refresh else nullcontext()
    with store_lock().read_lock(), compute_again:
        yield
