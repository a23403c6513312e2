"""No network but loopback, and nothing called outside; files that nobody else can write."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from shlex import join

import pytest

from artifacts.settings import CHECKOUT
from tests.conftest import as_flags
from tests.flows.test_train import FILES


@pytest.fixture
def environment(tmp_path):
    """The environment of a user's shell in which nothing is set but where MNIST_HOME is."""
    ours = ("PREFECT_", "MNIST_", "MLFLOW_", "GX_", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"MNIST_HOME": str(tmp_path / "home")}


def test_a_whole_run_needs_loopback_only_and_lets_nobody_write(environment, sample_parameters, tmp_path):
    """In a network namespace of its own, and with the most careless umask there is."""
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && umask 0 && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network namespace (unshare --map-root-user --net)")
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    refused = subprocess.run([*alone, sys.executable, "-c", outside], check=False, capture_output=True, text=True)
    assert "Network is unreachable" in refused.stderr
    done = subprocess.run(
        [*alone, sys.executable, "-m", "flows", "train", *as_flags(sample_parameters)],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "version 1 is the champion" in done.stdout
    (folder,) = (tmp_path / "home" / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES
    everything = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
    assert [path for path in everything if path.lstat().st_mode & stat.S_IWOTH and not path.is_symlink()] == []


def test_make_up_lets_nobody_write_either(own_checkout):
    """Its own folders come before the servers, which have a umask of their own."""
    careless = ["sh", "-c", 'umask 0 && exec "$@"', "sh", sys.executable]
    stop = "import service.server as s; s.in_use = lambda port: True; print(s.up())"
    assert own_checkout.run(*careless, "-c", stop).stdout.strip() == "1"
    assert stat.S_IMODE((own_checkout.home / "server").stat().st_mode) == 0o755


TRACE = ["strace", "--follow-forks", "--seccomp-bpf", "--trace=connect,sendto,sendmsg,sendmmsg", "--quiet=all"]
# One after the other: everything that a user starts, the worker's run while the servers are up, an own server after.
SESSION = """
python -m service.server up
prefect deployment run mnist/train --watch {parameters}
python -m flows train {flags}
python -m flows history
python -m flows gc
python -m service.server down
python -m flows train {flags} --train.seed=1
"""


def traced(folder, command, **options):
    """The addresses that a command and all its children tried to reach, as the kernel was asked, and how often."""
    trace = folder / "trace"
    done = subprocess.run(
        [*TRACE, f"--output={trace}", *command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for line in trace.read_text(errors="replace").splitlines():
        for address in re.findall(r"sa_family=AF_\w+[^}]*", line):
            found[address] = found.get(address, 0) + 1
    return found


def is_outside(address):
    """Whether an address is of another machine, or asks somebody else: a name server's port, say."""
    if "htons(53)" in address:
        return True
    return not re.match(
        r'sa_family=(AF_UNIX|AF_NETLINK|AF_UNSPEC|AF_INET, .*inet_addr\("127\.|AF_INET6, .*"(::1|::ffff:127\.[\d.]+)")',
        address,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_of_it_calls_outside(own_checkout, sample_parameters, tmp_path, came):
    if shutil.which("strace") is None:
        pytest.skip("strace isn't installed: nothing was proved about connections to the outside")
    calls = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('192.0.2.1', 80))"
    control = traced(tmp_path, [sys.executable, "-c", calls])
    assert [address for address in control if is_outside(address)], control

    given = join(as_flags(sample_parameters))
    parameters = join(f"--param={name}={json.dumps(value)}" for name, value in sample_parameters.items())
    script = "set -e\n" + SESSION.format(flags=given, parameters=parameters)
    began = time.monotonic()
    found = traced(tmp_path, ["sh", "-c", script], cwd=own_checkout.checkout, env=dict(own_checkout.environment))
    for port in ("MNIST_PREFECT_PORT", "MNIST_MLFLOW_PORT"):
        assert [address for address in found if f"htons({own_checkout.environment[port]})" in address]

    assert [address for address in found if is_outside(address)] == []
    assert len([path for path in (own_checkout.home / "runs").iterdir() if (path / "report.html").exists()]) == 3
    came("a call to the outside, looked for", "recovered", time.monotonic() - began)
