"""Reproduce: make a registered version again in a clean environment, and say whether it is identical."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, ValidationError

from artifacts.dataset import read_array
from artifacts.errors import GitError, ReproduceError
from artifacts.records.base import Record, short
from artifacts.records.data import Dataset
from artifacts.records.release import Lineage
from artifacts.settings import CHECKOUT, Settings
from artifacts.store import digest_file
from tasks.data.files import ARRAYS
from tasks.data.sources import MNIST_DIGEST
from tasks.registry.lineage import PATCH, read_lineage
from tasks.registry.versions import connect, find_number
from tasks.running.code import digest_code
from tasks.running.locks import file_lock, store_lock
from tasks.running.revision import git

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


# Variables of the user's environment that would lead the new virtual environment to this one.
OUR_OWN = ("MAKE", "MFLAGS", "MLFLOW_", "MNIST_", "PREFECT_", "PYTHON", "VIRTUAL_ENV")


class Row(Record):
    """One thing that is compared."""

    what: str
    registered: str
    rebuilt: str

    @property
    def same(self) -> bool:
        """Whether both values are the same."""
        return self.registered == self.rebuilt

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The row of a table."""
        return self.what, short(self.registered), short(self.rebuilt), "yes" if self.same else "NO"


class Reproduction(Record):
    """The result of making a version again.

    Attributes:
        version: The version's number.
        causes: What decides the result, in the order of the comparison: code, libraries, data, processor.
        results: The weights digest, and the figures on the test set.
        folder: The folder with the rebuilt model and its lineage.
    """

    version: int
    causes: tuple[Row, ...]
    results: tuple[Row, ...]
    folder: Path

    @property
    def identical(self) -> bool:
        """Whether weights and figures are the same."""
        return all(row.same for row in self.results)

    @property
    def verdict(self) -> str:
        """The result in a sentence. If it differs, the sentence names the first thing that differs."""
        if self.identical:
            return f"version {self.version} was made again, identical in weights and figures"
        differing = next((row for row in self.causes if not row.same), None)
        if differing:
            what, then, now, _ = differing.cells
            why = f"the first that differs is {what}: {then} → {now}"
        else:
            why = (
                "nothing that is recorded differs, so look at the rest, for example environment variables (TF_…, OMP_…)"
            )
        return f"version {self.version} came out different; {why}"

    def __str__(self) -> str:
        """The table and the result, for a terminal."""
        rows = [("", "registered", "rebuilt", "same?"), *(row.cells for row in self.causes + self.results)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(["", *lines, "", self.verdict, f"the rebuilt model: {self.folder}"])


def reproduce_version(
    version: Annotated[int, Field(ge=1, lt=2**31, description="The version of the registered model to make again.")],
) -> Reproduction:
    """Make a registered version again from its revision, lock, data and parameters, and compare.

    Raises:
        RegistryError: Raised if there is no such version.
        ReproduceError: Raised if the version can't be made again, or a step of that fails.
    """
    client = connect()
    found = find_number(client, version)
    registered = read_lineage(found)
    with store_lock().read_lock(), file_lock(f"reproduce-{version}"):
        folder = Settings().home / "reproduce" / f"version-{version}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        patch = fetch_patch(client, found, folder) if registered.patch else None
        with checkout(registered.revision, patch, folder / "checkout") as project:
            npz = write_data(registered, project / "data.npz")
            rebuild(registered, project, folder, npz)
    rebuilt = Lineage.model_validate_json((folder / "rebuilt.json").read_text(encoding="utf-8"))
    causes, results = compare(registered, rebuilt)
    return Reproduction(version=version, causes=causes, results=results, folder=folder)


def fetch_patch(client: "MlflowClient", found: "ModelVersion", folder: Path) -> Path:
    """Put the patch of a version's uncommitted changes into a folder.

    Raises:
        ReproduceError: Raised if the patch was altered.
    """
    patch = Path(client.download_artifacts(str(found.run_id), PATCH, str(folder)))
    if digest_file(patch) != read_lineage(found).patch:
        raise ReproduceError(f"{PATCH} of MLflow run {found.run_id} was altered; restore it from a backup")
    return patch


@contextmanager
def checkout(revision: str, patch: Path | None, worktree: Path) -> Iterator[Path]:
    """Make a git worktree of a revision, with a patch applied, and remove it when the block ends.

    Returns:
        The project's folder in the worktree.

    Raises:
        ReproduceError: Raised if the revision isn't in this repository.
        GitError: Raised if git refuses, for example because the patch doesn't apply.
    """
    try:
        git(CHECKOUT, "cat-file", "-e", f"{revision}^{{commit}}")
    except GitError as error:
        raise ReproduceError(
            f"revision {revision} isn't in the git repository of {CHECKOUT}; fetch it (a shallow clone: "
            "git fetch --unshallow), and try again"
        ) from error
    remove_worktree(worktree)  # left by a call that was killed
    try:
        git(CHECKOUT, "worktree", "add", "--force", "--detach", str(worktree), revision)
        if patch:
            git(worktree, "apply", "--whitespace=nowarn", str(patch))
        # The project may be a folder of a larger repository.
        yield worktree / git(CHECKOUT, "rev-parse", "--show-prefix").decode().strip()
    finally:
        remove_worktree(worktree)


def remove_worktree(worktree: Path) -> None:
    """Remove a worktree, even if it is incomplete."""
    with suppress(GitError):  # git may not know it yet; then there is nothing to unregister
        git(CHECKOUT, "worktree", "remove", "--force", str(worktree))
    shutil.rmtree(worktree, ignore_errors=True)


def write_data(registered: Lineage, npz: Path) -> Path | None:
    """Write the version's data from the store into an ``.npz``, and check their digests.

    Returns:
        The file. None if the store has no data any more, but they are MNIST, which the package has.

    Raises:
        ReproduceError: Raised if the store has no data any more, and they were the user's own.
    """
    try:
        dataset = Dataset.model_validate(registered.dataset)
    except ValidationError as error:
        if registered.dataset["digest"] == MNIST_DIGEST:
            return None
        raise ReproduceError(
            f"the version's data, {registered.dataset['digest'][:12]}…, aren't in the store any more and came from "
            "your own file; ingest it again (make train ARGS='--ingest.source path --ingest.path …'), and try again"
        ) from error
    np.savez(npz, allow_pickle=False, **{name: read_array(getattr(dataset, name)) for name in ARRAYS})
    return npz


def rebuild(registered: Lineage, project: Path, folder: Path, npz: Path | None) -> None:
    """Install the lock file of a checkout there, then train and evaluate there.

    Raises:
        ReproduceError: Raised if either fails. Their output goes to this process's standard error.
    """
    (folder / "registered.json").write_text(registered.model_dump_json(indent=2), encoding="utf-8")
    minor = registered.libraries["python"].rsplit(".", 1)[0]
    python = shutil.which(f"python{minor}") or sys.executable
    user = {name: value for name, value in os.environ.items() if not name.startswith(OUR_OWN)}
    # The new process gets only the path of programs: the version must not need any other variable of this process.
    clean = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    (project / ".mnist").mkdir(exist_ok=True)  # inside the checkout, so that these files are removed with it
    moved = (project / "tasks" / "operations" / "rebuild.py").exists()
    module = "tasks.operations.rebuild" if moved else "tasks.rebuild"  # its name in version 0.1.0
    arguments = [folder / "registered.json", folder, *([npz] if npz else [])]
    for command, environment in (
        (["make", "--no-print-directory", f"PYTHON={python}", ".venv/synced"], user),
        ([project / ".venv/bin/python", "-m", module, *arguments], clean | {"HOME": str(project / ".mnist")}),
    ):
        done = subprocess.run(list(map(str, command)), cwd=project, env=environment, stdout=2, check=False)
        if done.returncode != 0:
            raise ReproduceError(
                f"`{command[0]}` failed in the checkout of {registered.revision[:12]}; the reason is printed above"
            )


def compare(registered: Lineage, rebuilt: Lineage) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Compare what two models were made from, and their results.

    Returns:
        The causes in the order of the comparison, and the results; see `Reproduction`.
    """

    def row(what: str, then: object, now: object) -> Row:
        return Row(what=what, registered=str(then), rebuilt=str(now))

    def rows(what: str, then: dict[str, str], now: dict[str, str]) -> list[Row]:
        return [row(f"{what} {name}", then.get(name), now.get(name)) for name in then | now]

    causes = []
    # Another Python version parses the same code into another tree, so its digests can't be compared.
    if registered.libraries["python"].split(".")[:2] == rebuilt.libraries["python"].split(".")[:2]:
        changed = [r for r in rows("code", registered.code, rebuilt.code) if not r.same]
        causes += changed or [row("code", digest_code(registered.code), digest_code(rebuilt.code))]
    causes += rows("library", registered.libraries, rebuilt.libraries)
    causes.append(row("data", registered.dataset["digest"], rebuilt.dataset["digest"]))
    causes.append(row("arithmetic", registered.arithmetic, rebuilt.arithmetic))
    causes.append(row("processor", registered.processor, rebuilt.processor))
    results = [row("weights", registered.weights_digest, rebuilt.weights_digest)]
    results += [row(f"test {name}", then, rebuilt.metrics.get(name)) for name, then in registered.metrics.items()]
    return tuple(causes), tuple(results)
