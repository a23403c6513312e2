"""Records about the data: the data set, its validation, the check of its labels."""

from typing import Literal

from pydantic import Field

from artifacts.records.base import Record, StepRecord
from artifacts.store import StoredFile

N_CLASSES = 10


class Dataset(StepRecord):
    """MNIST, or data of the same shape, as raw arrays in the store. `artifacts.dataset` reads them.

    Attributes:
        source: The source that the data came from, e.g. ``package`` or ``path``.
        digest: SHA-256 of the digests of the four arrays. It identifies the data, whatever source they came from.
        x_train: Training images as a ``.npy`` file, shape ``(n, height, width)``, uint8 in 0–255 for MNIST.
        y_train: Training labels as a ``.npy`` file, shape ``(n,)``, uint8 in 0–9 for MNIST.
        x_test: Test images, like `x_train`.
        y_test: Test labels, like `y_train`.
    """

    source: str
    digest: str
    x_train: StoredFile
    y_train: StoredFile
    x_test: StoredFile
    y_test: StoredFile

    def identity(self) -> str:
        """What counts in the key of a later step: the data, but not their source."""
        return self.digest


class Outcome(Record):
    """The outcome of one expectation.

    Attributes:
        table: The table that was checked, e.g. ``train images``.
        expectation: GX's name for it, e.g. ``expect_column_max_to_be_between``.
        column: The column that was checked. None for an expectation about the whole table.
        meaning: What is expected, in words.
        severity: ``error`` stops the run, ``warning`` is reported.
        success: Whether the data meet the expectation.
        observed: The observed value, as text.
        sample_indices: The indices of a few rows that break it.
    """

    table: str
    expectation: str
    column: str | None
    meaning: str
    severity: Literal["error", "warning"]
    success: bool
    observed: str
    sample_indices: tuple[int, ...] = ()


class Validation(StepRecord):
    """The outcome of the expectation suite, and its full result."""

    success: bool
    outcomes: tuple[Outcome, ...]
    result: StoredFile = Field(description="GX's validation results, JSON.")
    data_docs: StoredFile = Field(description="GX's Data Docs, one HTML page without outside links.")


class LabelCheck(StepRecord):
    """How training labels agree with models that never saw those images.

    Attributes:
        data_digest: The data whose training labels were checked.
        n_wrong: How many training images have another label than such a model predicts.
        n_suspects: How many of them are label errors according to cleanlab.
        csv: All of these, the most likely errors first: index, label, prediction, quality (0 bad, 1 good), suspect.
        images: The first of these images, uint8 of shape ``(n, height, width)``.
    """

    data_digest: str
    n_wrong: int
    n_suspects: int
    csv: StoredFile
    images: StoredFile
