"""What a person reads of a run while it goes: its log lines, and errors without tracebacks."""

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from artifacts.errors import MnistError


def run_logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The running task's logger, which the UI shows; a plain one where the task was called as `task.fn(…)`."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("mnist")


def show_errors_in_one_line() -> None:
    """Let Prefect log the pipeline's own errors without their traceback: they say what to do, where they are read."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_drop_traceback)


def _drop_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], MnistError):
        record.exc_info = None
    return True
