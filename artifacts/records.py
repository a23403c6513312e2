"""What the steps hand to one another: small frozen records of digests, files and figures, never arrays."""

import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from artifacts.store import StoredFile

N_CLASSES = 10


class Record(BaseModel):
    """Base of the records: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(Record):
    """What decides whether a step's result can be reused; its digest is the cache key.

    Attributes:
        step: The step's name.
        inputs: Digest by input; a parameter model counts field by field (``train.epochs``).
        code: Digest by module that the step depends on, comments and formatting left out.
        libraries: Version by library.
    """

    step: str
    inputs: dict[str, str]
    code: dict[str, str]
    libraries: dict[str, str]

    @property
    def digest(self) -> str:
        """The name under which the result is kept."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def changes_since(self, other: Self) -> tuple[str, ...]:
        """Name what differs from another key of the same step, in words, e.g. ``train.epochs: 3 → 1``."""
        changes = []
        for kind in ("inputs", "code", "libraries"):
            now, then = getattr(self, kind), getattr(other, kind)
            for name in sorted(now.keys() | then.keys()):
                if now.get(name) == then.get(name):
                    continue
                if kind == "code":
                    changes.append(f"code of {name}")
                else:
                    changes.append(f"{name}: {short(then.get(name))} → {short(now.get(name))}")
        return tuple(changes)


def short(value: str | None) -> str:
    """A value as a line of text shows it: a digest's first 12 digits tell it apart."""
    if value is None:
        return "none"
    return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value


class Origin(Record):
    """Where a step's result was computed.

    Attributes:
        flow_run_id: The flow run that computed it; none where the task was called outside of one.
        at: When it was done, in UTC.
        seconds: How long the step took, wall time.
        revision: The checkout's git revision, ending in ``-dirty`` if files differed from it; none outside of git.
        key: What it was computed from; none for a step that always runs.
    """

    flow_run_id: str | None
    at: datetime
    seconds: float
    revision: str | None
    key: Key | None


class StepRecord(Record):
    """Base of what a step returns; `origin` says who computed it and is no part of a later step's key."""

    origin: Origin | None = None


class Dataset(StepRecord):
    """MNIST, or data in its shape, as raw arrays in the store; `artifacts.dataset.load` reads them.

    Attributes:
        source: What was asked for and found, e.g. ``package`` or ``path``.
        digest: SHA-256 of the four arrays' digests, which identifies the data whatever source they came from.
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
        """What a later step's key holds: the data, not where they came from."""
        return self.digest


class Outcome(Record):
    """The outcome of one expectation.

    Attributes:
        table: The table that was checked, e.g. ``train images``.
        expectation: GX's name of it, e.g. ``expect_column_max_to_be_between``.
        column: The column checked; none for an expectation of the whole table.
        meaning: What is expected, in words.
        severity: ``error`` stops the run, ``warning`` is reported.
        success: Whether the data meet it.
        observed: The observed value, as text.
        sample_indices: Row indices of a few that break it.
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


class ClassMetrics(Record):
    """Precision, recall and F1 of one class, and its number of test images."""

    label: int
    precision: float
    recall: float
    f1: float
    support: int


class Evaluation(StepRecord):
    """A model's figures on the test set.

    Attributes:
        weights_digest: The model evaluated.
        data_digest: The data whose test set it was evaluated on.
        loss: Mean cross-entropy (natural logarithm).
        accuracy: Share of right predictions, in 0–1.
        n_test: Test images.
        n_wrong: Test images predicted wrong.
        expected_calibration_error: See `tasks.evaluate.expected_calibration_error`, in 0–1.
        n_for_a_person: Test images to hand to a person, the least sure first, so that of the rest 99.9 % are right.
        confusion_matrix: Counts, a row for each label and a column for each prediction.
        classes: Figures by class.
        probabilities: Softmax outputs as a ``.npy`` file, float32 of shape ``(n_test, 10)``.
    """

    weights_digest: str
    data_digest: str
    loss: float
    accuracy: float
    n_test: int
    n_wrong: int
    expected_calibration_error: float
    n_for_a_person: int
    confusion_matrix: tuple[tuple[int, ...], ...]
    classes: tuple[ClassMetrics, ...]
    probabilities: StoredFile


class LabelCheck(StepRecord):
    """What models that never saw a training image say of its label.

    Attributes:
        data_digest: The data whose training labels were looked at.
        n_wrong: Training images whose label isn't what such a model predicts.
        n_suspects: Those of them that cleanlab takes for label errors.
        csv: All of them, the likeliest label errors first: index, label, prediction, quality (0 bad, 1 good), suspect.
        images: The first of those images, uint8 of shape ``(n, height, width)``.
    """

    data_digest: str
    n_wrong: int
    n_suspects: int
    csv: StoredFile
    images: StoredFile


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

    kind: Literal["digit", "stroke", "slant", "size", "change"]
    name: str
    n: int
    n_right: int
    low: float
    high: float

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


Cause = Literal["label error", "ambiguous", "confusable pair", "atypical", "unexplained"]


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
        cause: See `tasks.explain`.
        evidence: What speaks for the cause, in words.
        status: ``new`` if the champion has the image right, ``shared`` if not; none if there is no other champion.
        guesses: The three most probable classes, the prediction first.
        neighbours: The three nearest training images, the nearest first.
    """

    index: int
    label: int
    cause: Cause
    evidence: str
    status: Literal["new", "shared"] | None
    guesses: tuple[Guess, ...]
    neighbours: tuple[Neighbour, ...]


class Explanation(StepRecord):
    """Why a model's wrong predictions are wrong, probably.

    Attributes:
        causes: How many there are of each cause; all causes, in the order in which they are looked for.
        cases: All wrong predictions, as a JSON list of `Case`, the most instructive first.
        images: For the first of them, uint8 of shape ``(n, 4, height, width)``: the test image and its neighbours.
        suspects: The test images that most look mislabelled, predicted right or wrong, as CSV.
    """

    causes: dict[Cause, int]
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


class Check(Record):
    """One check of the gate."""

    name: str
    passed: bool
    on_failure: Literal["hold", "reject"]
    detail: str = Field(description="The figures behind it, in words.")


class Comparison(Record):
    """A model against the champion, on the same test images.

    Attributes:
        won: Indices of the images that the model has right and the champion wrong.
        lost: Indices of those that the champion has right and the model wrong.
        n: Test images.
        p_better: One-sided exact McNemar p-value; small if the model is better.
        p_worse: The same for the other side.
        p_not_worse: Small if the model isn't worse by more than the margin.
        p_worse_by_class: By class, small if the model is worse there; corrected for ten looks.
        images_needed: Test images that would decide, if the observed difference is the true one; none if none would.
    """

    won: tuple[int, ...]
    lost: tuple[int, ...]
    n: int
    p_better: float
    p_worse: float
    p_not_worse: float
    p_worse_by_class: tuple[float, ...]
    images_needed: int | None


class Verdict(StepRecord):
    """The gate's word on a model: what to do with it, and each reason."""

    decision: Literal["promote", "hold", "reject"]
    checks: tuple[Check, ...]
    champion: str | None = Field(description="Weights digest of the champion compared with, if any.")
    comparison: Comparison | None = None


class Report(StepRecord):
    """The pictures and tables of a model's evaluation; the page around them is made by publish."""

    learning_curves: StoredFile
    confusion_matrix: StoredFile
    wrong_predictions: StoredFile
    wrong_predictions_csv: StoredFile
    robustness: StoredFile
    confidence: StoredFile
    disagreements: StoredFile | None = Field(
        default=None, description="Images that only one of model and champion has right, if there is a champion."
    )


class Version(Record):
    """A version in the model registry.

    Attributes:
        name: The registered model's name.
        version: The version's number.
        mlflow_run_id: The MLflow run that holds its parameters, metrics and files.
        model: The model registered.
    """

    name: str
    version: int
    mlflow_run_id: str
    model: Model


class Lineage(Record):
    """What a version was made from, so that it can be made again, and what came of it; a tag of the version.

    A field added later needs a default: the versions registered before lack it.

    Attributes:
        revision: The commit of the code.
        patch: SHA-256 of the patch, a file of the version's MLflow run, that the code had besides; none if none.
        parameters: All of train's.
        dataset: `Dataset` as JSON: whether its files are still there shows when it is read.
        n_train: Images trained on.
        n_validation: Images held out of the training data.
        code: Digest by module of what train and evaluate depend on.
        libraries: Version by library that can change their results, Python's too.
        arithmetic: Keras's dtype policy of the fit.
        processor: The processor of the fit.
        weights_digest: The model that came of it.
        metrics: Its figures on the test set.
    """

    revision: str
    patch: str | None
    parameters: dict[str, Any]
    dataset: dict[str, Any]
    n_train: int
    n_validation: int
    code: dict[str, str]
    libraries: dict[str, str]
    arithmetic: str
    processor: str
    weights_digest: str
    metrics: dict[str, int | float]


class AliasMove(Record):
    """One line of the registry's history.

    Attributes:
        at: When, in UTC.
        by: Who or what: a flow run, or a person at the command line.
        alias: The alias that moved.
        before: The version that bore it before; none if none did.
        after: The version that bears it now.
        why: The reason, in words.
        verdict: The gate's word that it rests on; none where a person decided.
    """

    at: datetime
    by: str
    alias: str
    before: int | None
    after: int
    why: str
    verdict: Literal["promote", "hold", "reject"] | None = None


class Registration(StepRecord):
    """What register did.

    Attributes:
        version: The version that holds the model.
        created: Whether this run registered it; false if it was there already.
        champion: The champion's version after this run, if there is one.
        previous_champion: The champion's version before this run, if there was one.
        withheld: Why a person replaced this version as champion, if the gate would have it back.
    """

    version: Version
    created: bool
    champion: int | None
    previous_champion: int | None
    withheld: str | None = None


class Results(Record):
    """What the steps of a run returned."""

    dataset: Dataset
    validation: Validation
    labels: LabelCheck
    training: Training
    evaluation: Evaluation
    robustness: Robustness
    infra: InfraValidation
    verdict: Verdict
    explanation: Explanation
    report: Report
    registration: Registration
    champion: Evaluation | None = Field(
        description="Of the champion that the model was compared with, if there is one."
    )
    champion_robustness: Robustness | None = None


class RunSummary(Record):
    """What to tell the person who started a run."""

    flow_run_id: str
    folder: Path
    accuracy: float
    n_wrong: int
    n_test: int
    headline: str
    version: int
    steps: tuple[str, ...] = Field(description="A line for each step: computed or reused, and why.")

    def __str__(self) -> str:
        """The summary as a person reads it in a terminal."""
        steps = "\n  ".join(self.steps)
        return f"""
  {self.headline}
  test accuracy {self.accuracy:.4f}, {self.n_wrong} of {self.n_test:,} wrong

  {steps}

  the run's folder   {self.folder}
  open its report    {(self.folder / "report.html").as_uri()}
  in the UI          make up, then /runs/flow-run/{self.flow_run_id}"""


class Collected(Record):
    """What gc removed of one kind, or would.

    Attributes:
        what: The kind, in the plural.
        removed: How many.
        size: Bytes of the disk that this frees, or freed.
        stay: How many stay; none where they weren't counted.
        names: Of things that a person knows by name, those removed.
    """

    what: str
    removed: int
    size: int
    stay: int | None
    names: tuple[str, ...] = ()


class Collection(Record):
    """What gc did, or would do.

    Attributes:
        applied: Whether it was done.
        rows: By kind, in the order of removal.
        not_reproducible: Versions that stay and whose data set is newly found to be gone from the store, or would go.
    """

    applied: bool
    rows: tuple[Collected, ...]
    not_reproducible: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the disk that all of it frees."""
        return sum(row.size for row in self.rows)

    def __str__(self) -> str:
        """A table, and the names of what goes."""
        done = self.applied
        lines = [f"  {'':<18}{'removed' if done else 'to remove':>10}{'freed':>14}{'stay':>8}"]
        for row in self.rows:
            freed = f"{row.size / 1e6:,.1f} MB" if row.size else ""
            lines.append(f"  {row.what:<18}{row.removed:>10,}{freed:>14}{'' if row.stay is None else row.stay:>8}")
        lines += [f"  {'in all':<18}{'':>10}{f'{self.size / 1e6:,.1f} MB':>14}", ""]
        lines += [f"  {row.what}: {', '.join(row.names)}" for row in self.rows if row.names]
        if self.not_reproducible:
            numbers = ", ".join(map(str, self.not_reproducible))
            lines.append(f"  model versions that can't be reproduced any more, their data being gone: {numbers}")
        lines.append("  removed" if done else '  nothing was removed; `make gc ARGS="--apply"` does it')
        return "\n".join(lines)
