"""The secret of the servers: made once, good or refused. And which supervisor is ours."""

import os
import stat
import subprocess
import time

import pytest

from artifacts.errors import StoreError
from service import server
from service.server import command, make_secret, read_secret, running_supervisor


def test_a_secret_is_made_once(tmp_path):
    file = tmp_path / "secret"
    make_secret(file)
    secret = read_secret(file)
    user, _, password = secret.partition(":")
    assert (user, len(password)) == ("mnist", 32)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    make_secret(file)
    assert read_secret(file) == secret


@pytest.mark.parametrize(
    ("content", "mode", "fault"),
    [
        ("", 0o600, "is empty or too short"),
        ("\n", 0o600, "is empty or too short"),
        ("mnist:", 0o600, "is empty or too short"),
        ("mnist:12345", 0o600, "is empty or too short"),
        (":" + 32 * "x", 0o600, "is empty or too short"),
        (f"mnist:{32 * 'x'}", 0o644, "can be read by others"),
        (f"mnist:{32 * 'x'}", 0o640, "can be read by others"),
    ],
)
def test_a_secret_that_lets_others_in_is_refused_or_replaced(tmp_path, capsys, content, mode, fault):
    file = tmp_path / "secret"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(StoreError, match=f"the secret .*{fault}; run `make down`, then `make up`"):
        read_secret(file)
    make_secret(file)
    assert fault in capsys.readouterr().out
    assert read_secret(file) != content.strip()


def test_a_missing_secret_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is missing; run `make down`, then `make up`"):
        read_secret(tmp_path / "secret")


@pytest.fixture
def supervisor(tmp_path):
    """A process that is called supervisord, and has a home."""
    process = subprocess.Popen(
        ["bash", "-c", "exec -a supervisord sleep 60"],
        env={"MNIST_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]},
    )
    while "supervisord" not in command(process.pid):
        time.sleep(0.01)
    for home in ("home", "copy"):
        (tmp_path / home / "server").mkdir(parents=True)
        (tmp_path / home / "server" / "supervisord.pid").write_text(str(process.pid))
    yield process.pid
    process.kill()
    process.wait()


def test_the_supervisor_of_another_home_is_not_ours(supervisor, tmp_path):
    assert running_supervisor(tmp_path / "home" / "server") == supervisor
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert running_supervisor(tmp_path / "link" / "server") == supervisor
    assert running_supervisor(tmp_path / "copy" / "server") is None
    (tmp_path / "copy" / "server" / "supervisord.pid").write_text(str(os.getpid()))
    assert running_supervisor(tmp_path / "copy" / "server") is None


def test_down_leaves_another_homes_servers_alone(supervisor, tmp_path, monkeypatch, capsys):
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"{server.MARK}MNIST_HOME='{tmp_path / 'home'}'\n")
    monkeypatch.setattr(server, "DOTENV", dotenv)
    monkeypatch.setenv("MNIST_HOME", str(tmp_path / "copy"))
    assert server.down() == 0
    assert f"the servers of {tmp_path / 'home'} are left alone" in capsys.readouterr().out
    assert dotenv.exists()
    os.kill(supervisor, 0)
