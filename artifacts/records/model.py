"""Records of a training: the model and its history."""

from typing import Any

from pydantic import Field

from artifacts.records.base import Record, StepRecord
from artifacts.store import StoredFile


class Model(Record):
    """A trained model, known by the digest of its weights (a ``.keras`` file holds the date it was saved)."""

    weights_digest: str
    network: str
    n_parameters: int
    keras: StoredFile = Field(description="The model as `model.save(….keras)` writes it.")
    h5: StoredFile = Field(description="The model in the older HDF5 format, as the seed saved it.")

    def identity(self) -> str:
        """What a later step's key holds: the weights, not the files' dates."""
        return self.weights_digest


class Epoch(Record):
    """One line of the training history, written when the validation split was looked at.

    Attributes:
        epoch: Epochs done, counted in parts of one if validation happens within epochs.
        loss: Mean cross-entropy with what is learnt (the smoothed labels, or the teachers' mean answers) over the
            training images since the line before.
        accuracy: Their share of predictions that agree with it, in 0–1, while the weights were changing.
        val_loss: Mean cross-entropy over the validation split.
        val_accuracy: Its share of right predictions, in 0–1.
        learning_rate: Of the last step.
        seconds: Wall time since the line before.
    """

    epoch: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


class Training(StepRecord):
    """What training made: the model, its history, and how long the fit took."""

    model: Model
    history: tuple[Epoch, ...]
    n_train: int = Field(description="Images trained on.")
    n_validation: int = Field(description="Images held out of the training data to validate on.")
    precision: str = Field(description="Keras's dtype policy of the fit, e.g. mixed_bfloat16.")
    temperature: float = Field(
        description="What the logits were divided by to calibrate the model, on its validation split."
    )
    processor: str = Field(description="The processor of the fit; the weights' last bits depend on its kind and cores.")
    fit_seconds: float = Field(
        description="Wall seconds of the fit, with validation and teachers, in the process that ended it."
    )
    fit_cpu_seconds: float = Field(description="CPU seconds of the same, of all the process's threads.")

    def identity(self) -> dict[str, Any]:
        """What a later step's key holds: the model and its curves, not how long they took."""
        return {
            "model": self.model.identity(),
            "history": [epoch.model_dump(exclude={"seconds"}) for epoch in self.history],
        }
