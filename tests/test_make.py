"""What make hands on to the command line: the arguments as they were typed, and none of the environment."""

import os
import shlex
import subprocess

import pytest

from artifacts.settings import CHECKOUT


def made(*arguments, **environment):
    """The words of the command that make would run."""
    # What the make that runs the tests was told isn't told to this one.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=CHECKOUT,
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return shlex.split(done.stdout.splitlines()[-1])[3:]


@pytest.mark.parametrize(
    "reason", ["saves $5 a day", "$(shell false)", 'it\'s "so"', "50 % `cheaper`", "a\\b", "#1, yes"]
)
def test_a_reason_arrives_as_it_was_typed(reason):
    # A user's shell hands on what he typed; make itself knows no other way to write a comment sign.
    assert made("rollback", f"REASON={reason}") == ["rollback", f"--reason={reason}"]


@pytest.mark.parametrize("command", ["promote", "rollback", "reproduce", "train", "gc"])
def test_a_variable_of_the_environment_is_no_argument(command):
    assert made(command, VERSION="1", REASON="x", ARGS="--apply") == [command]


def test_arguments_are_the_shells():
    assert made("train", "ARGS=--train.seed 7 --ingest.path 'a $b'") == [
        "train",
        "--train.seed",
        "7",
        "--ingest.path",
        "a $b",
    ]
