"""The index: a page that lists all runs, the newest first, with links to their files."""

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

# The files that a row links to, by the text of the link. The first file that exists is the run's own page.
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
        id: The flow run's id, which is the name of its folder.
        ended: When its manifest was written, in UTC.
        manifest: The manifest. Its state is ``unreadable`` if the file is damaged.
        metrics: The figures of its model, by name. Empty if it has no model.
        files: Which of `FILES` exist, by the text of the link.
    """

    id: str
    ended: datetime
    manifest: Manifest
    metrics: dict[str, float]
    files: dict[str, str]

    @property
    def outcome(self) -> str:
        """The gate's decision or, if there is none, how the run ended, in a word for people."""
        if self.manifest.verdict:
            return DECISIONS[self.manifest.verdict.decision]
        return self.manifest.state.capitalize()


class RunPage(NamedTuple):
    """One page of the index.

    Attributes:
        runs: The rows, the newest run first.
        number: The number of the page, from 1 on.
        n_pages: The number of pages.
        n_runs: The number of runs on all pages.
    """

    runs: list[RunEntry]
    number: int
    n_pages: int
    n_runs: int


def read_page(folder: Path, number: int) -> RunPage:
    """Read the runs of a page from the folder of all runs. If there is no such page, read the nearest one."""
    manifests = []
    for path in folder.glob(f"*/{MANIFEST}"):
        with suppress(FileNotFoundError):  # gc may be removing it
            manifests.append((path, path.stat().st_mtime_ns))
    n_pages = max(1, math.ceil(len(manifests) / PAGE))
    number = min(max(number, 1), n_pages)
    shown = sorted(manifests, key=lambda found: -found[1])[(number - 1) * PAGE : number * PAGE]
    return RunPage([_read_run(path.parent, changed) for path, changed in shown], number, n_pages, len(manifests))


@functools.lru_cache(maxsize=10_000)
def _read_run(folder: Path, changed: int) -> RunEntry:
    """Read a run once for each state of its manifest, which was written `changed` nanoseconds after 1970."""
    metrics: dict[str, float] = {}
    try:
        manifest = Manifest.read(folder)
        metrics = (manifest and manifest.metrics) or _read_metrics(folder / "metrics.json")
    except ValueError:  # the damaged file of one run must not hide the others
        manifest = None
    return RunEntry(
        id=folder.name,
        ended=datetime.fromtimestamp(changed / 1e9, UTC),
        manifest=manifest or Manifest(flow_run_id=folder.name, state="unreadable"),
        metrics=metrics,
        files={text: name for text, name in FILES.items() if (folder / name).exists()},
    )


def _read_metrics(file: Path) -> dict[str, float]:
    """Read the figures of a run of version 0.1.0, whose manifest has none."""
    return TypeAdapter(dict[str, float]).validate_json(file.read_bytes()) if file.exists() else {}


def index_html(page: RunPage, elsewhere: Mapping[str, str]) -> str:
    """Draw a page.

    Args:
        page: The content of the page.
        elsewhere: The addresses of the other UIs, by name.
    """
    return HTML.get_template("index.html").render(page=page, elsewhere=elsewhere)
