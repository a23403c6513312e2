"""The checkout in git: its revision, and the patch of its uncommitted changes."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import GitError
from artifacts.settings import CHECKOUT

# New files of these kinds count although git doesn't know them yet. A data set or a notebook doesn't count.
NEW_FILES = ("*.py", "*.lock", "artifacts/templates")


class WorkingTree(NamedTuple):
    """The state of the checkout in git.

    Attributes:
        revision: The commit that is checked out. None outside of git.
        patch: The patch that turns this commit into the current files, for `git apply`. Empty if nothing differs.
    """

    revision: str | None
    patch: bytes


@functools.cache
def working_tree() -> WorkingTree:
    """The checkout when this process first asked. A file that is saved later isn't the code that the process loaded."""
    try:
        return WorkingTree(git(CHECKOUT, "rev-parse", "HEAD").decode().strip(), uncommitted(CHECKOUT))
    except GitError:
        return WorkingTree(None, b"")


def git_revision() -> str | None:
    """The revision of the checkout. It ends in ``-dirty`` if files differ from it. None outside of git."""
    revision, patch = working_tree()
    return f"{revision}-dirty" if patch else revision


def uncommitted(checkout: Path) -> bytes:
    """The patch of all differences from the last commit, including new files. Git's index stays as it is.

    Raises:
        GitError: Raised if the checkout isn't git's.
    """
    index = git(checkout, "rev-parse", "--path-format=absolute", "--git-path", "index").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(index, folder)
        git(checkout, "add", "--intent-to-add", "--", *NEW_FILES, index=copy)
        # The options make a patch that any git applies, whatever this user's settings are.
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        return git(checkout, "diff", *plain, "HEAD", "--", ".", index=copy)


def git(folder: Path, *arguments: str, index: str | None = None) -> bytes:
    """Run git in a folder, on another index if one is given.

    Returns:
        What it prints.

    Raises:
        GitError: Raised if there is no git, or git refuses. The message has the last line of git's output.
    """
    program = shutil.which("git")
    if program is None:
        raise GitError("git isn't installed")
    # GIT_DIR and the like would name another repository.
    without_git = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [program, "-C", str(folder), *arguments],
        env=without_git | ({"GIT_INDEX_FILE": index} if index else {}),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise GitError(f"git {arguments[0]} in {folder}: {reason}")
    return done.stdout
