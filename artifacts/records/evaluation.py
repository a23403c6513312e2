"""Records about the quality of a model: its figures, its errors and their causes."""

from typing import Literal

from pydantic import Field

from artifacts.records.base import Record, StepRecord
from artifacts.store import StoredFile

# The kind of slices that have one class each.
CLASS_KIND = "digit"


class ClassMetrics(Record):
    """Precision, recall and F1 of one class, and its number of test images."""

    label: int
    precision: float
    recall: float
    f1: float
    support: int


class Evaluation(StepRecord):
    """A model's figures on the test set.

    Each field that is a number is a metric: it is registered, and kept in ``metrics.json``. A metric with a title is
    also shown in the report, in the format that ``shown`` gives (by default, four decimals).

    Attributes:
        weights_digest: The model.
        data_digest: The data whose test set was used.
        accuracy: Share of right predictions, in 0–1.
        n_wrong: How many test images are predicted wrong.
        n_test: The number of test images.
        loss: Mean cross-entropy (natural logarithm).
        expected_calibration_error: See `tasks.evaluate.expected_calibration_error`, in 0–1.
        n_for_a_person: How many test images to hand to a person, the least sure first, so that 99.9 % of the rest are
            right.
        confusion_matrix: Counts, with a row per label and a column per prediction.
        classes: The figures of each class.
        probabilities: Softmax outputs as a ``.npy`` file, float32 of shape ``(n_test, 10)``.
    """

    weights_digest: str
    data_digest: str
    accuracy: float = Field(title="Test accuracy")
    n_wrong: int = Field(title="Wrong predictions", json_schema_extra={"shown": "{n_wrong:,} of {n_test:,}"})
    n_test: int
    loss: float = Field(title="Test loss")
    expected_calibration_error: float = Field(title="Calibration error (ECE)")
    n_for_a_person: int = Field(title="Ask a person about", json_schema_extra={"shown": "{n_for_a_person:,} images"})
    confusion_matrix: tuple[tuple[int, ...], ...]
    classes: tuple[ClassMetrics, ...]
    probabilities: StoredFile

    def metrics(self) -> dict[str, int | float]:
        """The figures by name: all fields that are numbers."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, int | float)}

    def titled_metrics(self) -> dict[str, str]:
        """The figures with a title, as text, by title."""
        metrics, titled = self.metrics(), {}
        for name, field in type(self).model_fields.items():
            if field.title:
                extra = field.json_schema_extra
                shown = str(extra["shown"]) if isinstance(extra, dict) and "shown" in extra else f"{{{name}:.4f}}"
                titled[field.title] = shown.format(**metrics)
        return titled


class Slice(Record):
    """The accuracy of a model on a part of the test images, or on changed test images.

    Attributes:
        kind: What the images have in common: ``digit``, ``stroke``, ``slant``, ``size`` or ``change``.
        name: The part or the change, in words.
        n: The number of images.
        n_right: How many of them are predicted right.
        low: Lower end of the 95 % confidence interval of the accuracy (Wilson), in 0–1.
        high: Upper end of this interval, in 0–1.
    """

    kind: str
    name: str
    n: int
    n_right: int
    low: float
    high: float

    @property
    def is_class(self) -> bool:
        """Whether it has the images of one class. The gate has its own check for those."""
        return self.kind == CLASS_KIND

    @property
    def accuracy(self) -> float:
        """Share of the images predicted right, in 0–1."""
        return self.n_right / self.n


class Robustness(StepRecord):
    """The accuracy of a model on slices of the test set and on changed test images.

    Attributes:
        weights_digest: The model.
        data_digest: The data whose test set was used.
        slices: The figures of each slice, sorted by kind.
        right: For each slice and test image, int8 of shape ``(len(slices), n_test)``: 1 right, 0 wrong, -1 not in it.
    """

    weights_digest: str
    data_digest: str
    slices: tuple[Slice, ...]
    right: StoredFile


class Cause(Record):
    """A cause of wrong predictions.

    Attributes:
        name: The name of the cause, e.g. ``ambiguous``.
        meaning: What it means, in words.
        times: How many wrong predictions have it.
    """

    name: str
    meaning: str
    times: int


class Guess(Record):
    """A class and its probability, in 0–1."""

    label: int
    probability: float


class Neighbour(Record):
    """A training image, and its distance from a test image: the cosine distance of their features, in 0–2."""

    index: int
    label: int
    distance: float


class Case(Record):
    """A wrong prediction and its probable cause.

    Attributes:
        index: The index of the test image.
        label: Its label.
        cause: The name of a `Cause`, see `tasks.explain`.
        evidence: The evidence for the cause, in words.
        status: ``new`` if the champion has the image right, ``shared`` if not. None if there is no other champion.
        guesses: The three most probable classes, the prediction first.
        neighbours: The three nearest training images, the nearest first.
    """

    index: int
    label: int
    cause: str
    evidence: str
    status: Literal["new", "shared"] | None
    guesses: tuple[Guess, ...]
    neighbours: tuple[Neighbour, ...]


class Explanation(StepRecord):
    """The probable causes of a model's wrong predictions.

    Attributes:
        causes: All causes, in the order in which they are tried, and how often each was found.
        cases: All wrong predictions, as a JSON list of `Case`, the most instructive first.
        images: For the first of them, the test image and its neighbours: uint8 of shape ``(n, 4, height, width)``.
        suspects: The test images whose labels look most wrong, whether predicted right or wrong, as CSV.
    """

    causes: tuple[Cause, ...]
    cases: StoredFile
    images: StoredFile
    suspects: StoredFile


class InfraValidation(StepRecord):
    """What the saved model does in a fresh interpreter, without this project's code and without a network.

    Attributes:
        n_images: How many test images were predicted.
        largest_deviation: The largest difference between a probability and the evaluation's.
        size: The size of the ``.keras`` file, in bytes.
        load_seconds: Wall time to load the model after the libraries are imported.
        seconds_for_1: Wall time to predict one image, median of 20.
        seconds_for_1000: Wall time to predict 1,000 images (or all, if there are fewer), median of 3.
        peak_bytes: Peak memory of the interpreter, in bytes.
    """

    n_images: int
    largest_deviation: float
    size: int
    load_seconds: float
    seconds_for_1: float
    seconds_for_1000: float
    peak_bytes: int


class Report(StepRecord):
    """The pictures and tables of a model's evaluation. Publish makes the page around them.

    Attributes:
        pictures: The PNG files by name, see `artifacts.pictures.PICTURES`.
        wrong_predictions_csv: The wrong predictions, the most confident first.
    """

    pictures: dict[str, StoredFile]
    wrong_predictions_csv: StoredFile
