"""The index of the runs: a page that lists what lies in their folders, the newest first."""

import functools
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from artifacts.pages import HTML
from artifacts.records.run import MANIFEST, Manifest
from artifacts.report import DECISIONS

# What a row links to, by the link's text; the first that is there is the run's own page.
FILES = {
    "report": "report.html",
    "Data Docs": "data_docs.html",
    "wrong predictions": "wrong_predictions.csv",
    "model": "model.keras",
    "manifest": MANIFEST,
}
PAGE = 100


class RunEntry(NamedTuple):
    """A row of the index.

    Attributes:
        id: The flow run's id, which is its folder's name.
        ended: When its manifest was written, in UTC.
        manifest: What the manifest says of it; the state is ``unreadable`` if it is damaged.
        metrics: The figures of its model, by name; empty if it has none.
        files: Which of `FILES` there are, by the link's text.
    """

    id: str
    ended: datetime
    manifest: Manifest
    metrics: dict[str, float]
    files: dict[str, str]

    @property
    def outcome(self) -> str:
        """The gate's word, or how the run ended if it wasn't asked, as a person says it."""
        if self.manifest.verdict:
            return DECISIONS[self.manifest.verdict.decision]
        return self.manifest.state.capitalize()


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
    for path in folder.glob(f"*/{MANIFEST}"):
        with suppress(FileNotFoundError):  # a clean-up may be at work
            manifests.append((path, path.stat().st_mtime_ns))
    n_pages = max(1, math.ceil(len(manifests) / PAGE))
    number = min(max(number, 1), n_pages)
    shown = sorted(manifests, key=lambda found: -found[1])[(number - 1) * PAGE : number * PAGE]
    return RunPage([_read_run(path.parent, changed) for path, changed in shown], number, n_pages, len(manifests))


@functools.lru_cache(maxsize=10_000)
def _read_run(folder: Path, changed: int) -> RunEntry:
    """Read a run whose manifest was last written `changed` nanoseconds after 1970: it is read once."""
    metrics: dict[str, float] = {}
    try:
        manifest = Manifest.read(folder)
        metrics = (manifest and manifest.metrics) or _read_metrics(folder / "metrics.json")
    except ValueError:  # one run's broken file must not hide the others
        manifest = None
    return RunEntry(
        id=folder.name,
        ended=datetime.fromtimestamp(changed / 1e9, UTC),
        manifest=manifest or Manifest(flow_run_id=folder.name, state="unreadable"),
        metrics=metrics,
        files={text: name for text, name in FILES.items() if (folder / name).exists()},
    )


def _read_metrics(file: Path) -> dict[str, float]:
    """Read the figures of a run of version 0.1.0, whose manifest doesn't have them."""
    return TypeAdapter(dict[str, float]).validate_json(file.read_bytes()) if file.exists() else {}


def index_html(page: RunPage, elsewhere: Mapping[str, str]) -> str:
    """Draw a page.

    Args:
        page: What is on it.
        elsewhere: Addresses of the other UIs, by name.
    """
    return HTML.get_template("index.html").render(page=page, elsewhere=elsewhere)
