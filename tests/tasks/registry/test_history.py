"""A process may die between any two writes of a move: the next command that holds the lock finishes it."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from artifacts.records.release import AliasMove
from artifacts.settings import CHECKOUT
from tasks.registry.history import MOVING, finish_move, history, move_alias, previous_champion, read_history
from tasks.registry.versions import connect, number_by_alias

pytestmark = pytest.mark.expensive  # it makes a registry

WRITES = (
    "set_registered_model_tag",
    "set_registered_model_alias",
    "update_registered_model",
    "delete_registered_model_tag",
)


class KilledError(BaseException):
    """Stands for the end of the process."""


class Mortal:
    """A client that ends before its n-th write."""

    def __init__(self, client, n):
        self.client, self.left = client, n

    def __getattr__(self, name):
        if name in WRITES:
            self.left -= 1
            if self.left == 0:
                raise KilledError
        return getattr(self.client, name)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with versions 1 to 8 of no content; version 1 is the champion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_HOME", str(tmp_path_factory.mktemp("registry")))
        client = connect()
        client.create_registered_model("mnist")
        for _ in range(8):
            client.create_model_version("mnist", source="file:///nowhere")
        move_alias(client, move(None, 1))
        yield client


def move(before, after):
    return AliasMove(at=datetime.now(UTC), by="a test", alias="champion", before=before, after=after, why="to see")


def line(client):
    return [(one.before, one.after) for one in history(client)]


@pytest.mark.parametrize("n", range(1, 7))
def test_a_move_is_whole_or_not_at_all(registry, n):
    before, lines = number_by_alias(registry, "champion"), line(registry)
    after = before + 1
    try:
        move_alias(Mortal(registry, n), move(before, after))
        died = False
    except KilledError:
        died = True
    assert died == (n <= 5)  # it writes five times
    finish_move(registry)
    if n == 1:
        assert (number_by_alias(registry, "champion"), line(registry)) == (before, lines)
        move_alias(registry, move(before, after))
    assert number_by_alias(registry, "champion") == after
    assert line(registry) == [*lines, (before, after)]
    assert previous_champion(history(registry)) == before
    model = registry.get_registered_model("mnist")
    assert MOVING not in model.tags
    assert f"| champion | {before} | {after} |" in model.description
    finish_move(registry)
    assert line(registry) == [*lines, (before, after)]


@pytest.mark.parametrize("write", ["set_registered_model_alias", "update_registered_model"])
def test_kill_9_and_make_history_finishes(registry, write):
    before = number_by_alias(registry, "champion")
    code = (
        "import os, signal, sys\n"
        "from tasks.registry.history import move_alias\n"
        "from tasks.registry.versions import connect\n"
        "from tests.tasks.registry.test_history import move\n"
        "client = connect()\n"
        f"client.{write} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"move_alias(client, move({before}, 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert MOVING in registry.get_registered_model("mnist").tags
    assert f"{before} → 1" in read_history().splitlines()[-1]
    assert number_by_alias(registry, "champion") == 1
    move_alias(registry, move(1, before))
