"""Faults around a run, each explained in one line: a full disk, a database that is damaged, locked or gone."""

import errno
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import MnistError, RegistryError, StoreError
from artifacts.settings import Settings

if TYPE_CHECKING:
    from prefect import State, Task
    from prefect.client.schemas import TaskRun


# SQLite's own words. Other libraries pass them on.
DAMAGED = ("file is not a database", "database disk image is malformed", "malformed database schema")


def explain(error: BaseException) -> MnistError | None:
    """Explain an error to a person: what happened, where, and what to do. None if it is a defect of the pipeline.

    MLflow, SQLAlchemy and Keras wrap the system's errors in their own ways, so all causes of the error are looked at.
    """
    if isinstance(error, MnistError):
        return error
    settings, causes = Settings(), list(_causes(error))
    said = "\n".join(map(str, causes))
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    folders = [folder for folder in (settings.home, Path(tempfile.gettempdir())) if folder.exists()]
    where = min(folders, key=lambda folder: shutil.disk_usage(folder).free)
    if (
        numbers & {errno.ENOSPC, errno.EDQUOT}
        or "database or disk is full" in said
        # Prefect's server only says that it failed.
        or ("500 Internal Server Error" in said and shutil.disk_usage(where).free < 1_000_000)
    ):
        return StoreError(f"the disk of {where} is full; make room there and run again: finished steps are reused")
    if "500 Internal Server Error" in said and (damage := find_damage(settings.prefect_database)):
        return damaged_prefect(settings, damage)
    if errno.EROFS in numbers or "readonly database" in said:
        return StoreError(f"{settings.home} can't be written: it is read-only; make it writable, or set MNIST_HOME")
    if "database is locked" in said:
        return RegistryError(
            f"another process has locked the database {settings.tracking_uri} for too long; end it, and run again"
        )
    if any(damage in said for damage in DAMAGED):
        # In this process, only MLflow uses SQLAlchemy. The other database that it opens is the lock of the store.
        if "sqlalche.me" in said:
            return damaged_registry(settings, said.splitlines()[0])
        return StoreError(f"{settings.home}/locks/store.db is damaged; delete it while no run is going")
    if any(type(cause).__name__ == "MlflowException" and "API request to" in str(cause) for cause in causes):
        return silent_registry(settings)
    return None


def may_pass(task: "Task[..., object]", task_run: "TaskRun", state: "State[object]") -> bool:
    """Whether to try a step again: a lock is released and a server comes back, but a damaged file stays damaged."""
    del task, task_run
    error = state.result(raise_on_failure=False)
    return not isinstance(error, MnistError) and not isinstance(explain(error), StoreError)  # type: ignore[arg-type]


def check_prefect(settings: Settings) -> None:
    """Check that Prefect's database is undamaged or doesn't exist yet. The content of its rows isn't checked.

    Raises:
        StoreError: Raised if it is damaged.
    """
    if damage := find_damage(settings.prefect_database, rows_too=False):
        raise damaged_prefect(settings, damage)


def damaged_prefect(settings: Settings, damage: str) -> StoreError:
    """The error for a damaged database of Prefect's."""
    return StoreError(
        f"Prefect's database {settings.prefect_database} is damaged ({damage}); restore it from a backup, or move "
        "it and its -wal and -shm files away to begin with an empty one: it has the history of runs, but no models"
    )


def check_registry(settings: Settings) -> None:
    """Check that the embedded registry's database is undamaged, or that nothing was registered yet.

    Raises:
        StoreError: Raised if the database is damaged, or if it is gone although there are files of its models. MLflow
            would silently begin an empty database, and the next model would become champion without a comparison.
    """
    file = settings.registry_database
    if file is None:
        return
    if damage := find_damage(file):
        raise damaged_registry(settings, damage)
    gone = not file.exists() or file.stat().st_size == 0
    if settings.mlflow_tracking_uri is None and gone and any((file.parent / "artifacts").glob("*")):
        raise damaged_registry(settings, "it is empty or gone, though models were registered")


def check_registry_server(settings: Settings) -> None:
    """Check that the MLflow server answers, if the registry is one, before a run trains for it.

    Raises:
        RegistryError: Raised if it doesn't.
    """
    if settings.tracking_uri.startswith(("http://", "https://")):
        import httpx

        try:
            httpx.get(settings.tracking_uri, timeout=10)  # any answer will do: it may want a password first
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise silent_registry(settings) from error


def silent_registry(settings: Settings) -> RegistryError:
    """The error for an MLflow server that doesn't answer."""
    return RegistryError(f"MLflow at {settings.tracking_uri} doesn't answer; start it, or correct MLFLOW_TRACKING_URI")


def damaged_registry(settings: Settings, damage: str) -> StoreError:
    """The error for a damaged registry."""
    folder = settings.home / "mlflow"
    return StoreError(
        f"MLflow's database {settings.tracking_uri} is damaged ({damage}); restore it from a backup, or move {folder} "
        "away to begin an empty registry: that folder has the models' files, the database had versions and champion"
    )


def find_damage(database: Path, rows_too: bool = True) -> str | None:
    """What SQLite finds wrong with a file. None if it is undamaged, missing, or locked by another process.

    Args:
        database: The file.
        rows_too: Whether to read everything, which takes seconds if there are the artifacts of a thousand runs.
            Otherwise only the tables are visited.
    """
    if not database.exists():
        return None
    found = "ok"
    with closing(sqlite3.connect(database, timeout=0)) as connection:
        try:
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            if rows_too:
                found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            else:
                for (table,) in tables:
                    connection.execute(f'SELECT count(*) FROM "{table}" NOT INDEXED').fetchone()  # noqa: S608
        except sqlite3.OperationalError:  # whatever needs the database will say so
            return None
        except sqlite3.DatabaseError as error:
            return str(error)
    return None if found == "ok" else " ".join(found.split())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A decorator of flows: an error that isn't a defect of the pipeline is logged in one line, and fails the run.

    Raises:
        MnistError: Raised in place of each error that `tasks.running.faults.explain` can explain.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_drop_traceback)
    try:
        yield
    except Exception as error:
        clear = explain(error)
        if clear is None or clear is error:
            raise
        raise clear from error


def _drop_traceback(record: logging.LogRecord) -> bool:
    clear = explain(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
    if clear:
        record.exc_info = None
    if isinstance(record.args, tuple):
        record.args = tuple((isinstance(a, Exception) and explain(a)) or a for a in record.args)
    return True
