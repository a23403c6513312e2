"""What a person reads of a run while it goes: log lines, progress, and errors without tracebacks."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from tasks.faults import explain


def run_logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The running task's logger, which the UI shows; a plain one where the task was called as `task.fn(…)`."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("mnist")


class Progress:
    """How far a step is, on the run's page while it goes; nothing where the task was called as `task.fn(…)`."""

    def __init__(self, n_parts: int = 1) -> None:
        """Begin at 0, of as many parts."""
        self._part, self._n_parts = 0, n_parts
        context = TaskRunContext.get()
        self._key = f"{context.task.name}-progress" if context else None
        self._artifact: UUID | None = None
        self._shown = 0.0

    def begin(self, what: str) -> str:
        """Begin the next part; what to put before what is said of it: ``"network 2 of 4: "``, nothing if it's alone."""
        self._part += 1
        return f"{what} {self._part} of {self._n_parts}: " if self._n_parts > 1 else ""

    def show(self, share: float, description: str) -> None:
        """Show a share of the part in 0–1, and what it means; at most every two seconds, and at the end."""
        share = (self._part - 1 + share) / self._n_parts
        if self._key is None or (share < 1 and time.monotonic() - self._shown < 2):
            return
        self._shown = time.monotonic()
        percent = round(100 * share)
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, self._key, description)  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent, description)
        except httpx.HTTPError as error:  # the work goes on without a server
            run_logger().warning(f"the progress isn't shown: {error}")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Decorator of a flow: what isn't a defect of the pipeline is logged, and fails the run, in one line.

    Raises:
        MnistError: Raised in place of what `tasks.faults.explain` has a word for.
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
