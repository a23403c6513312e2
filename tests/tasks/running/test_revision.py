"""The revision is the checkout's own, whatever git has been told elsewhere."""

import subprocess

import pytest

from artifacts.settings import CHECKOUT
from tasks.running.revision import git


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"])
def test_variables_that_name_another_repository_are_not_obeyed(tmp_path, monkeypatch, name):
    expected = git(CHECKOUT, "status", "--porcelain"), git(CHECKOUT, "rev-parse", "HEAD")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.setenv(name, str(tmp_path / ".git"))
    assert (git(CHECKOUT, "status", "--porcelain"), git(CHECKOUT, "rev-parse", "HEAD")) == expected
