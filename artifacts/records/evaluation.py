"""Records of what a model is worth: its figures, its errors and their causes."""

from typing import Literal

from pydantic import Field

from artifacts.records.base import Record, StepRecord
from artifacts.store import StoredFile

# The kind of the slices that hold one class each.
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

    Each field that is a number is a metric: it is registered, and kept in ``metrics.json``. A metric that has a title
    stands in the report, too, in the format that ``shown`` gives (by default, four decimals).

    Attributes:
        weights_digest: The model evaluated.
        data_digest: The data whose test set it was evaluated on.
        accuracy: Share of right predictions, in 0–1.
        n_wrong: Test images predicted wrong.
        n_test: Test images.
        loss: Mean cross-entropy (natural logarithm).
        expected_calibration_error: See `tasks.evaluate.expected_calibration_error`, in 0–1.
        n_for_a_person: Test images to hand to a person, the least sure first, so that of the rest 99.9 % are right.
        confusion_matrix: Counts, a row for each label and a column for each prediction.
        classes: Figures by class.
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
        """The figures that have a title, by that title, as text."""
        metrics, titled = self.metrics(), {}
        for name, field in type(self).model_fields.items():
            if field.title:
                extra = field.json_schema_extra
                shown = str(extra["shown"]) if isinstance(extra, dict) and "shown" in extra else f"{{{name}:.4f}}"
                titled[field.title] = shown.format(**metrics)
        return titled


class Slice(Record):
    """How a model does on a part of the test images, or on all of them changed.

    Attributes:
        kind: What the images have in common: ``digit``, ``stroke``, ``slant``, ``size`` or ``change``.
        name: The part or the change, in words.
        n: Images.
        n_right: Images predicted right.
        low: Lower end of the 95 % confidence interval of the accuracy (Wilson), in 0–1.
        high: Its upper end.
    """

    kind: str
    name: str
    n: int
    n_right: int
    low: float
    high: float

    @property
    def is_class(self) -> bool:
        """Whether it holds the images of one class; the gate has a check of its own for those."""
        return self.kind == CLASS_KIND

    @property
    def accuracy(self) -> float:
        """Share of the images predicted right, in 0–1."""
        return self.n_right / self.n


class Robustness(StepRecord):
    """How a model does on slices of the test set and on changed test images.

    Attributes:
        weights_digest: The model.
        data_digest: The data whose test set it is.
        slices: The figures, by kind.
        right: By slice and test image, int8 of shape ``(len(slices), n_test)``: 1 right, 0 wrong, -1 not in the slice.
    """

    weights_digest: str
    data_digest: str
    slices: tuple[Slice, ...]
    right: StoredFile


class Cause(Record):
    """A cause of wrong predictions.

    Attributes:
        name: What it is called, e.g. ``ambiguous``.
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
    """A training image, and how far it is from a test image: cosine distance of their features, in 0–2."""

    index: int
    label: int
    distance: float


class Case(Record):
    """A wrong prediction and its probable cause.

    Attributes:
        index: The test image.
        label: Its label.
        cause: The name of a `Cause`, see `tasks.explain`.
        evidence: What speaks for the cause, in words.
        status: ``new`` if the champion has the image right, ``shared`` if not; none if there is no other champion.
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
    """Why a model's wrong predictions are wrong, probably.

    Attributes:
        causes: All causes, in the order in which they are looked for, and how often each was found.
        cases: All wrong predictions, as a JSON list of `Case`, the most instructive first.
        images: For the first of them, uint8 of shape ``(n, 4, height, width)``: the test image and its neighbours.
        suspects: The test images that most look mislabelled, predicted right or wrong, as CSV.
    """

    causes: tuple[Cause, ...]
    cases: StoredFile
    images: StoredFile
    suspects: StoredFile


class InfraValidation(StepRecord):
    """How the saved model does in a fresh interpreter without this project's code and without a network.

    Attributes:
        n_images: Test images predicted.
        largest_deviation: From the evaluation's probabilities, of any.
        size: Of the ``.keras`` file, in bytes.
        load_seconds: Wall time to load it, with the libraries imported already.
        seconds_for_1: Wall time to predict one image, median of 20.
        seconds_for_1000: Wall time to predict 1,000 images (or all, if fewer), median of 3.
        peak_bytes: The interpreter's peak memory.
    """

    n_images: int
    largest_deviation: float
    size: int
    load_seconds: float
    seconds_for_1: float
    seconds_for_1000: float
    peak_bytes: int


class Report(StepRecord):
    """The pictures and tables of a model's evaluation; publish makes the page around them.

    Attributes:
        pictures: PNG by name, see `artifacts.pictures.PICTURES`.
        wrong_predictions_csv: The wrong predictions, the most confident first.
    """

    pictures: dict[str, StoredFile]
    wrong_predictions_csv: StoredFile
