"""What a person reads while a run goes: log lines and progress."""

import logging
import time
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger


def run_logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The logger of the running task, which the UI shows. A plain logger if the task was called as `task.fn(…)`."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("mnist")


class Progress:
    """The progress of a step, on the run's page while it goes. Shows nothing if the task was called as `task.fn(…)`."""

    def __init__(self, n_parts: int = 1) -> None:
        """Begin at 0, with a number of parts."""
        self._part, self._n_parts = 0, n_parts
        context = TaskRunContext.get()
        self._key = f"{context.task.name}-progress" if context else None
        self._artifact: UUID | None = None
        self._shown = 0.0

    def begin(self, what: str) -> str:
        """Begin the next part. Returns how its messages begin: ``"network 2 of 4: "``, ``""`` if it is alone."""
        self._part += 1
        return f"{what} {self._part} of {self._n_parts}: " if self._n_parts > 1 else ""

    def show(self, share: float, description: str) -> None:
        """Show which share of the part is done, in 0–1, with a text: at most every two seconds, and at the end."""
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
        except httpx.HTTPError as error:  # the work continues without a server
            run_logger().warning(f"the progress isn't shown: {error}")
