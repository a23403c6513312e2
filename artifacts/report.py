"""The report of a run: one HTML page, the same in Markdown, and the Markdown of its Prefect artifacts.

The text of a run can come from anywhere (a path, a parameter, an observed value). So the templates escape every value:
Jinja's autoescape for HTML, `escape_markdown` for Markdown.
"""

import csv
import hashlib
import json
from datetime import datetime
from typing import Any

from pydantic import Field, TypeAdapter

from artifacts.dataset import read_array
from artifacts.pages import HTML, MARKDOWN, plural
from artifacts.pictures import PICTURES, Picture, thumbnail
from artifacts.records.base import Record
from artifacts.records.data import LabelCheck, Validation
from artifacts.records.evaluation import Case, Slice
from artifacts.records.run import Results, Step

DECISIONS = {"promote": "Promoted", "hold": "Held back", "reject": "Rejected"}
ARTIFACT_ROWS = 50  # Prefect stores an artifact twice and lists it whole; the CSV has all rows
LABEL_ROWS = 10
N_PICTURED = 40  # how many of the images that only this model has right are named
_CASES = TypeAdapter(list[Case])


class Confusion(Record):
    """How often one class was taken for another."""

    label: int
    prediction: int
    times: int


class RunReport(Results):
    """Everything that the report of a run says.

    Attributes:
        id: The flow run's id.
        name: The flow run's name.
        started: When the run started.
        parameters: The run's parameters as JSON values, by step.
        code_digest: SHA-256 of the code that the run's steps depend on.
        git_revision: The revision of the checkout. None outside of git.
        libraries: Version by library.
        steps: The steps in the order of the run.
        links: The addresses of other pages about the run, by name, while `make up` runs.
    """

    id: str
    name: str
    started: datetime
    parameters: dict[str, dict[str, Any]]
    code_digest: str
    git_revision: str | None
    libraries: dict[str, str]
    steps: tuple[Step, ...]
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The verdict and its consequence, in one sentence."""
        version, champion = self.registration.version.version, self.registration.champion_number
        failed = [check.name for check in self.verdict.checks if not check.passed]
        end = f" (failed: {', '.join(failed)})." if failed else "."
        if champion == version == self.registration.previous_champion_number:
            return f"Unchanged: version {version} is the champion{end}"
        if self.registration.withheld is not None:
            return (
                f"Withheld: version {version} passes, but a person replaced it ({self.registration.withheld}), "
                f"and version {champion} remains the champion."
            )
        sentence = f"{DECISIONS[self.verdict.decision]}: version {version} "
        if champion == version:
            sentence += "is the champion"
            if self.registration.previous_champion_number not in (None, version):
                sentence += f", in place of version {self.registration.previous_champion_number}"
        elif champion is None:
            sentence += "is registered, and there is no champion yet"
        else:
            sentence += f"is registered, and version {champion} remains the champion"
        return sentence + end

    @property
    def key_figures(self) -> dict[str, str]:
        """The most important figures, by name."""
        return self.evaluation.titled_metrics()

    @property
    def rival_figures(self) -> dict[str, str]:
        """The same figures of the champion that the model was compared with. Empty if there is none."""
        return self.rival.titled_metrics() if self.rival else {}

    def rival_accuracy(self, one: Slice) -> str:
        """The accuracy of that champion on a slice. Empty if it wasn't measured."""
        rival = self.rival_robustness.slices if self.rival_robustness else ()
        found = [f"{other.accuracy:.4f}" for other in rival if (other.kind, other.name) == (one.kind, one.name)]
        return found[0] if found else ""

    def pictures(self, section: str) -> dict[str, Picture]:
        """The pictures of a section of the report that this run has, by name."""
        return {name: p for name, p in PICTURES.items() if p.section == section and name in self.report.pictures}

    def more_figures(self, step: str) -> dict[str, Any]:
        """The record of a step that has no section of its own: its fields as JSON."""
        return self.more[step].model_dump(mode="json", exclude={"origin"})

    @property
    def model_facts(self) -> dict[str, str]:
        """Facts about the model and its training, by name."""
        training, infra = self.training, self.infra
        model = training.model
        averages_shifts = self.parameters["train"].get("average_shifts")
        averaged = ", averaged over the image and its shifts by a pixel" if averages_shifts else ""
        return {
            "Registered as": f"{self.registration.version.name}, version {self.registration.version.version}",
            "Network": f"{model.network}, {model.n_parameters:,} parameters{averaged}",
            "Trained on": f"{training.n_train:,} images; {training.n_validation:,} held out to validate on",
            "Epochs": f"{training.history[-1].epoch:g}",
            "Learnt of each image": self.learnt,
            "Calibration": f"logits divided by {training.temperature:.3f}, fitted on the held-out images",
            "Fit": f"{training.fit_seconds:.1f} s in {training.precision}",
            "Fresh interpreter": f"loads in {infra.load_seconds:.1f} s without this project and a network, "
            f"predicts as evaluated to {infra.largest_deviation:.1g}",
            "Latency": f"{infra.seconds_for_1 * 1e3:.1f} ms for one image, "
            f"{infra.seconds_for_1000 * 1e3:.0f} ms for 1,000",
            "Size": f"{infra.size / 1e6:.1f} MB on disk; {infra.peak_bytes / 1e6:,.0f} MB of memory at the peak, "
            "libraries included",
            "Input": "28×28 greyscale image in 0–1, light ink on dark, shape (n, 28, 28, 1)",
            "Output": "probabilities of the digits 0–9, shape (n, 10)",
        }

    @property
    def n_teachers(self) -> int:
        """How many networks the model learnt from."""
        return int(self.parameters["train"].get("teachers", 0))

    @property
    def learnt(self) -> str:
        """What the model learnt for each training image."""
        if self.n_teachers:
            return f"the mean answer of {plural(self.n_teachers, 'network')}, trained before it"
        return "the label"

    @property
    def about_the_curves(self) -> str:
        """Why the curves of training and validation can't be compared directly."""
        changed = "dropout and changes of the images are on, if the recipe has them"
        if not self.n_teachers:
            smoothing = self.parameters["train"]["label_smoothing"]
            return (
                f"While training, labels are smoothed by {smoothing}, and {changed}. "
                "This is why loss is higher than val_loss."
            )
        return (
            f"The model learns {self.learnt}. Loss and accuracy are measured against that answer, "
            f"val_loss and val_accuracy against the label. While training, {changed}."
        )

    @property
    def parameters_digest(self) -> str:
        """SHA-256 of the parameters as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()

    @property
    def lineage(self) -> dict[str, str]:
        """The digests of everything that the version was made from, in order, and the version itself."""
        return {
            "data": self.dataset.digest,
            "code": self.code_digest,
            "parameters": self.parameters_digest,
            "model": self.training.model.weights_digest,
            "version": f"{self.registration.version.version}",
        }

    @property
    def confusions(self) -> list[Confusion]:
        """Which class was taken for which other, the most frequent first."""
        confusions = [
            Confusion(label=label, prediction=prediction, times=times)
            for label, row in enumerate(self.evaluation.confusion_matrix)
            for prediction, times in enumerate(row)
            if label != prediction and times > 0
        ]
        return sorted(confusions, key=lambda confusion: -confusion.times)

    @property
    def cases(self) -> list[Case]:
        """The wrong predictions, the most instructive first."""
        return _CASES.validate_json(self.explanation.cases.read_bytes())


def suspects(labels: LabelCheck) -> list[dict[str, str]]:
    """The training images whose labels look wrong, the most likely first: index, label, prediction, quality."""
    rows = csv.DictReader(labels.csv.read_bytes().decode().splitlines())
    return [row for row in rows if row["suspect"] == "True"]


def report_html(run: RunReport) -> str:
    """The whole report as one page that needs no other file: pictures and styles are inside. It has no script."""
    pictures = [[thumbnail(image) for image in images] for images in read_array(run.explanation.images)]
    labels = zip(suspects(run.labels), map(thumbnail, read_array(run.labels.images)), strict=False)
    won = run.verdict.comparison.won[:N_PICTURED] if run.verdict.comparison else ()
    x_test, y_test = (read_array(array) for array in (run.dataset.x_test, run.dataset.y_test)) if won else ((), ())
    return HTML.get_template("report.html").render(
        run=run,
        cases=list(zip(run.cases, pictures, strict=False)),
        mislabelled=list(labels),
        won=[(index, y_test[index], thumbnail(x_test[index])) for index in won],
    )


def report_markdown(run: RunReport) -> str:
    """The whole report as Markdown, for the run's folder. It links to the pictures in the same folder."""
    return _markdown("report", run, embed=False)


def summary(run: RunReport) -> str:
    """The artifact `summary`: the verdict, the figures, and which steps were computed or reused, and why."""
    return _markdown("summary", run)


def data_validation(validation: Validation, labels: LabelCheck | None = None) -> str:
    """The artifact `data-validation`: each expectation, and what was observed.

    If the validation stops the run, this is its only artifact. Otherwise it also lists the training labels that look
    wrong.
    """
    return MARKDOWN.get_template("data_validation.md").render(
        validation=validation, labels=labels, suspects=suspects(labels)[:LABEL_ROWS] if labels else ()
    )


def learning_curves(run: RunReport) -> str:
    """The artifact `learning-curves`: the picture and the history."""
    return _markdown("learning_curves", run)


def confusion_matrix(run: RunReport) -> str:
    """The artifact `confusion-matrix`: the picture and the figures by class."""
    return _markdown("confusion_matrix", run)


def wrong_predictions(run: RunReport) -> str:
    """The artifact `wrong-predictions`: the grid, the causes, and a table of the most instructive ones."""
    return _markdown("wrong_predictions", run)


def robustness(run: RunReport) -> str:
    """The artifact `robustness`: the picture and the figures by slice and change."""
    return _markdown("robustness", run)


def confidence(run: RunReport) -> str:
    """The artifact `confidence`: the reliability diagram, and how many images to hand to a person."""
    return _markdown("confidence", run)


def model_card(run: RunReport) -> str:
    """The artifact `model-card`: what the model is, what it is for, and how to load it."""
    return _markdown("model_card", run)


def lineage(run: RunReport) -> str:
    """The artifact `lineage`: which data, code and parameters made which model and version."""
    return _markdown("lineage", run)


def _markdown(template: str, run: RunReport, *, embed: bool = True) -> str:
    cases = run.cases
    return MARKDOWN.get_template(f"{template}.md").render(
        run=run,
        embed=embed,
        cases=cases[:ARTIFACT_ROWS] if embed else cases,
        validation=run.validation,
        labels=run.labels,
        suspects=suspects(run.labels)[:LABEL_ROWS],
    )
