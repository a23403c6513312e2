"""The index of the runs: a page that lists what lies in their folders, the newest first."""

import functools
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from artifacts.report import DECISIONS

# What a row links to, by the link's text; the first that is there is the run's own page.
FILES = {
    "report": "report.html",
    "Data Docs": "data_docs.html",
    "wrong predictions": "wrong_predictions.csv",
    "model": "model.keras",
    "manifest": "manifest.json",
}
PAGE = 100


class Decision(BaseModel):
    """The part of a manifest's verdict that the index shows."""

    decision: str


class RunEntry(BaseModel):
    """A row of the index: what a run's manifest and metrics say of it.

    Attributes:
        id: The flow run's id, which is its folder's name.
        ended: When its manifest was written, in UTC.
        state: How it ended, e.g. ``completed`` or ``failed``; ``unreadable`` if its files don't say.
        flow_run_name: The flow run's name.
        reason: Why it failed.
        verdict: The gate's word on its model.
        version: The registered version of its model.
        test_accuracy: Share of right predictions, in 0–1.
        n_wrong: Test images predicted wrong.
        n_test: Test images.
        files: Which of `FILES` there are, by the link's text.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    ended: datetime
    state: str
    flow_run_name: str = ""
    reason: str | None = None
    verdict: Decision | None = None
    version: int | None = None
    test_accuracy: float | None = None
    n_wrong: int | None = None
    n_test: int | None = None
    files: dict[str, str] = {}

    @property
    def outcome(self) -> str:
        """The gate's word, or how the run ended if it wasn't asked, as a person says it."""
        decision = self.verdict.decision if self.verdict else ""
        return DECISIONS.get(decision, self.state.capitalize())


class RunPage(NamedTuple):
    """One page of the index.

    Attributes:
        runs: Its rows, the newest run first.
        number: Which page it is, from 1 on.
        n_pages: How many there are.
        n_runs: How many runs there are on all of them.
    """

    runs: list[RunEntry]
    number: int
    n_pages: int
    n_runs: int


def read_page(folder: Path, number: int) -> RunPage:
    """Read what there is of each run of a page, in a folder of runs' folders; of the nearest page if it isn't there."""
    manifests = []
    for path in folder.glob("*/manifest.json"):
        with suppress(FileNotFoundError):  # a clean-up may be at work
            manifests.append((path, path.stat().st_mtime_ns))
    n_pages = max(1, math.ceil(len(manifests) / PAGE))
    number = min(max(number, 1), n_pages)
    shown = sorted(manifests, key=lambda found: -found[1])[(number - 1) * PAGE : number * PAGE]
    return RunPage([_read_run(path.parent, changed) for path, changed in shown], number, n_pages, len(manifests))


@functools.lru_cache(maxsize=10_000)
def _read_run(folder: Path, changed: int) -> RunEntry:
    """Read a run whose manifest was last written `changed` nanoseconds after 1970: it is read once."""
    known = {
        "id": folder.name,
        "ended": datetime.fromtimestamp(changed / 1e9, UTC),
        "files": {text: name for text, name in FILES.items() if (folder / name).exists()},
    }
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
        if (folder / "metrics.json").exists():
            content |= json.loads((folder / "metrics.json").read_bytes())
        return RunEntry.model_validate(content | known)
    except (OSError, TypeError, ValueError):  # one run's broken file must not hide the others
        return RunEntry.model_validate({"state": "unreadable"} | known)


def index_html(page: RunPage, elsewhere: Mapping[str, str]) -> str:
    """Draw a page.

    Args:
        page: What is on it.
        elsewhere: Addresses of the other UIs, by name.
    """
    return _ENVIRONMENT.get_template("index.html").render(page=page, elsewhere=elsewhere)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
