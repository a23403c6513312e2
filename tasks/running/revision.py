"""The checkout in git: its revision, and the patch of what isn't committed."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import GitError
from artifacts.settings import CHECKOUT

# New files that count although git doesn't know them yet; a data set or a notebook in the checkout doesn't.
NEW_FILES = ("*.py", "*.lock", "artifacts/templates")


class WorkingTree(NamedTuple):
    """The checkout's files, as git has them.

    Attributes:
        revision: The commit checked out; none outside of git.
        patch: What `git apply` makes of that commit to get these files; empty if nothing differs.
    """

    revision: str | None
    patch: bytes


@functools.cache
def working_tree() -> WorkingTree:
    """The checkout as first seen by this process: a file saved during a run isn't the code that the run loaded."""
    try:
        return WorkingTree(git(CHECKOUT, "rev-parse", "HEAD").decode().strip(), uncommitted(CHECKOUT))
    except GitError:
        return WorkingTree(None, b"")


def git_revision() -> str | None:
    """The checkout's revision, ending in ``-dirty`` if files differ from it; none outside of git."""
    revision, patch = working_tree()
    return f"{revision}-dirty" if patch else revision


def uncommitted(checkout: Path) -> bytes:
    """The patch of what differs from the last commit, with the project's new files; git's index stays as it is.

    Raises:
        GitError: Raised if the checkout isn't git's.
    """
    index = git(checkout, "rev-parse", "--path-format=absolute", "--git-path", "index").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(index, folder)
        git(checkout, "add", "--intent-to-add", "--", *NEW_FILES, index=copy)
        # As text that any git applies, whatever the user has set for reading it.
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        return git(checkout, "diff", *plain, "HEAD", "--", ".", index=copy)


def git(folder: Path, *arguments: str, index: str | None = None) -> bytes:
    """Run git in a folder, on another index if one is given.

    Returns:
        What it prints.

    Raises:
        GitError: Raised if there is no git, or it refuses; with its last line.
    """
    program = shutil.which("git")
    if program is None:
        raise GitError("git isn't installed")
    done = subprocess.run(
        [program, "-C", str(folder), *arguments],
        env=os.environ | ({"GIT_INDEX_FILE": index} if index else {}),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise GitError(f"git {arguments[0]} in {folder}: {reason}")
    return done.stdout
