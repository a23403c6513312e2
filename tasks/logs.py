"""What a person reads of a run while it goes: log lines, progress, and errors without tracebacks."""

import logging
import time
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from artifacts.errors import MnistError


def run_logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The running task's logger, which the UI shows; a plain one where the task was called as `task.fn(…)`."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("mnist")


class Progress:
    """How far a step is, on the run's page while it goes; nothing where the task was called as `task.fn(…)`."""

    def __init__(self) -> None:
        """Begin at 0."""
        context = TaskRunContext.get()
        self._key = f"{context.task.name}-progress" if context else None
        self._artifact: UUID | None = None
        self._shown = 0.0

    def show(self, share: float, description: str) -> None:
        """Show a share in 0–1, and what it means; at most every two seconds, and at the end."""
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


def show_errors_in_one_line() -> None:
    """Let Prefect log the pipeline's own errors without their traceback: they say what to do, where they are read."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_drop_traceback)


def _drop_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], MnistError):
        record.exc_info = None
    return True
