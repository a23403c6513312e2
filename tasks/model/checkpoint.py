"""Checkpoint: keep everything that a training needs to continue after a kill and end with the same weights."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from pydantic import TypeAdapter

from artifacts.records.model import Epoch
from artifacts.settings import home
from artifacts.store import replace_durably
from tasks.running.logs import run_logger

if TYPE_CHECKING:
    import keras


HISTORY = TypeAdapter(tuple[Epoch, ...])


class Checkpoint:
    """The state of a training after its last validation, in a file that is complete or absent.

    The file has every variable of the model (the weights, and the states of dropout's generators) and of the optimizer
    (the moments and the step, which decides the learning rate and the batches), and the history.
    """

    def __init__(self, key: str | None, network: str = "training"):
        """Keep the checkpoint of a network under the cache key of its step. Without a key, keep none."""
        self._file = _folder(key) / f"{network}.npz" if key else None

    def save(self, model: "keras.Model", history: list[Epoch]) -> None:
        """Replace the checkpoint."""
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            f"{n}": np.asarray(variable) for n, variable in enumerate(_variables(model))
        }
        arrays["history"] = np.frombuffer(HISTORY.dump_json(tuple(history)), np.uint8)
        with tempfile.TemporaryDirectory(dir=self._file.parent) as folder:
            temporary = Path(folder) / self._file.name
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type] # for the stub a name could be `allow_pickle`
            replace_durably(temporary, self._file)

    def restore(self, model: "keras.Model") -> tuple[Epoch, ...]:
        """Bring a compiled model into the state of the checkpoint.

        Returns:
            The history so far. Empty if there is no checkpoint, or none that can be read.
        """
        if self._file is None or not self._file.exists():
            return ()
        variables = _variables(model)
        try:
            with np.load(self._file, allow_pickle=False) as arrays:
                values = [arrays[f"{n}"] for n in range(len(variables))]
                history = HISTORY.validate_json(arrays["history"].tobytes())
        # A flipped bit in a zip file can cause any error: the file may look encrypted, or huge.
        except Exception as error:
            run_logger().warning(f"{self._file} can't be read ({error}); training starts again from the beginning")
            return ()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return history


def _variables(model: "keras.Model") -> "list[keras.Variable]":
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def _folder(key: str) -> Path:
    return home() / "checkpoints" / key


def forget_checkpoint(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> None:
    """Delete the checkpoint of a training that is complete. This is a hook of the task."""
    del task, task_run
    if isinstance(state.data, ResultRecord) and state.data.metadata.storage_key:
        shutil.rmtree(_folder(Path(state.data.metadata.storage_key).name), ignore_errors=True)
