"""Records about a whole run: what its steps returned, its manifest, and its summary for a person."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from artifacts.records.base import Key, Record, StepRecord
from artifacts.records.data import Dataset, LabelCheck, Validation
from artifacts.records.evaluation import Evaluation, Explanation, InfraValidation, Report, Robustness
from artifacts.records.model import Training
from artifacts.records.release import Registration, Verdict
from artifacts.store import StoredFile, write_atomically

MANIFEST = "manifest.json"


class Results(Record):
    """What the steps of a run returned, in the order of the run.

    Attributes:
        more: The records of steps that have no field here, by the name of the step. Their figures are shown in the
            manifest and at the end of the report.
        rival: The evaluation of the champion that the model was compared with, if there is one.
        rival_robustness: The robustness of that champion.
    """

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
    more: dict[str, StepRecord] = Field(default_factory=dict)
    rival: Evaluation | None = None
    rival_robustness: Robustness | None = None

    def by_step(self) -> dict[str, StepRecord]:
        """What each step returned, by the step's name."""
        return {
            "ingest": self.dataset,
            "validate": self.validation,
            "check-labels": self.labels,
            "train": self.training,
            "evaluate": self.evaluation,
            "robustness": self.robustness,
            "infra-validate": self.infra,
            "gate": self.verdict,
            "explain": self.explanation,
            "report": self.report,
            **self.more,
            "register": self.registration,
        }


class Step(Record):
    """What a run did about one step.

    Attributes:
        name: The step's name.
        state: Whether the run computed the step's result or reused it.
        seconds: Wall seconds that the computation took, in this run or in the earlier run.
        reused_from: The id of the earlier flow run that computed the result. None if this run computed it.
        changes: Why the step was computed: what had changed since the last time, in words.
        key: What decides the step's result. None for a step that always runs.
    """

    name: str
    state: Literal["computed", "reused"]
    seconds: float
    reused_from: str | None = None
    changes: tuple[str, ...] = ()
    key: Key | None = None

    @property
    def reason(self) -> str:
        """Where the result comes from, or why it was computed."""
        return f"from run {self.reused_from}" if self.reused_from else "; ".join(self.changes)

    @property
    def line(self) -> str:
        """The step in one line, for a terminal."""
        if self.state == "reused":
            return f"{self.name:<14} reused {self.reason} ({self.seconds:.1f} s then)"
        return f"{self.name:<14} computed in {self.seconds:.1f} s: {self.reason}"


class Manifest(Record):
    """A run: what made its result, how each step went, and its files. This is ``manifest.json`` in the run's folder.

    The other files of the folder are links to `files`, for people. Manifests of earlier versions must stay readable: a
    field that is added later needs a default, and unknown fields are ignored.

    Attributes:
        flow_run_id: The flow run's id, which is the name of the folder.
        flow_run_name: The flow run's name.
        state: How the run ended, e.g. ``completed`` or ``failed``.
        reason: Why it failed.
        parameters: The run's parameters as JSON values, by step.
        data_digest: The data.
        code_digest: SHA-256 of the code that the run's steps depend on.
        git_revision: The revision of the checkout. None outside of git.
        libraries: Version by library.
        steps: The steps in the order of the run.
        weights_digest: The model.
        metrics: The content of ``metrics.json``. Empty for a run of version 0.1.0.
        verdict: The gate's decision.
        version: The number of the registered version.
        champion_number: The number of the champion's version after the run.
        files: The files of the run's folder, by name. Empty for a run of version 0.1.0.
    """

    model_config = ConfigDict(extra="ignore")

    flow_run_id: str
    flow_run_name: str = ""
    state: str
    reason: str | None = None
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data_digest: str | None = None
    code_digest: str | None = None
    git_revision: str | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    weights_digest: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    verdict: Verdict | None = None
    version: int | None = None
    champion_number: int | None = None
    files: dict[str, StoredFile] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest into the run's folder. It must be the last file of the run."""
        write_atomically(folder / MANIFEST, self.model_dump_json(indent=2, exclude={"verdict": {"origin"}}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of a run's folder. The files that it names aren't checked.

        Returns:
            None if the run was killed before it wrote a manifest.

        Raises:
            ValueError: Raised if the manifest is damaged. The message names the file.
        """
        file = folder / MANIFEST
        try:
            return cls.model_validate_json(file.read_bytes(), context={"check_files": False})
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} errors in it"
            raise ValueError(f"{file} can't be read ({reason})") from error


class RunSummary(Record):
    """The summary for the person who started a run."""

    flow_run_id: str
    folder: Path
    accuracy: float
    n_wrong: int
    n_test: int
    headline: str
    version: int
    steps: tuple[str, ...] = Field(description="A line per step: computed or reused, and why.")

    def __str__(self) -> str:
        """The summary as text for a terminal."""
        steps = "\n  ".join(self.steps)
        return f"""
  {self.headline}
  test accuracy {self.accuracy:.4f}, {self.n_wrong} of {self.n_test:,} wrong

  {steps}

  the run's folder   {self.folder}
  open its report    {(self.folder / "report.html").as_uri()}
  in the UI          make up, then /runs/flow-run/{self.flow_run_id}"""
