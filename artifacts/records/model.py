"""Records about a training: the model and its history."""

from typing import Any

from pydantic import Field

from artifacts.records.base import Record, StepRecord
from artifacts.store import StoredFile


class Model(Record):
    """A trained model. Its weights' digest identifies it, because a ``.keras`` file contains the date of saving."""

    weights_digest: str
    network: str
    n_parameters: int
    keras: StoredFile = Field(description="The model as `model.save(….keras)` writes it.")
    h5: StoredFile = Field(description="The model in the older HDF5 format, as the seed saved it.")

    def identity(self) -> str:
        """What counts in the key of a later step: the weights, but not the dates in the files."""
        return self.weights_digest


class Epoch(Record):
    """One record of the training history, made at a validation.

    Attributes:
        epoch: The number of finished epochs. It is a fraction if there are validations within an epoch.
        loss: Mean cross-entropy with the targets (the smoothed labels, or the teachers' mean answers) over the training
            images since the last record.
        accuracy: Share of these images whose prediction agreed with the target, in 0–1, while the weights changed.
        val_loss: Mean cross-entropy over the validation split.
        val_accuracy: Share of right predictions on the validation split, in 0–1.
        learning_rate: The learning rate of the last step.
        seconds: Wall time since the last record.
    """

    epoch: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


class Training(StepRecord):
    """The result of a training: the model, its history, and how long the fit took."""

    model: Model
    history: tuple[Epoch, ...]
    n_train: int = Field(description="Images trained on.")
    n_validation: int = Field(description="Number of images held out of the training data to validate on.")
    precision: str = Field(description="Keras's dtype policy in the fit, e.g. mixed_bfloat16.")
    temperature: float = Field(
        description="The number by which the logits were divided to calibrate the model, found on its validation split."
    )
    processor: str = Field(
        description="The processor of the fit. The last bits of the weights depend on its kind and cores."
    )
    fit_seconds: float = Field(
        description="Wall seconds of the fit with validations and teachers, in the process that finished it."
    )
    fit_cpu_seconds: float = Field(description="CPU seconds of the fit, of all threads of that process.")

    def identity(self) -> dict[str, Any]:
        """What counts in the key of a later step: the model and its curves, but not how long they took."""
        return {
            "model": self.model.identity(),
            "history": [epoch.model_dump(exclude={"seconds"}) for epoch in self.history],
        }
