"""`make up` and `make down`: servers and worker under supervision, the work pool, the deployments."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dotenv import dotenv_values

from artifacts.errors import StoreError
from artifacts.settings import CHECKOUT, Settings
from service.environment import environment, fail, prepare

BIN = Path(sys.executable).parent
# Prefect and our settings read this file, so that every `prefect …` in the checkout works.
DOTENV = CHECKOUT / ".env"
# Characters; a generated password has 32.
MIN_PASSWORD = 16
MARK = "# Written by `make up`, deleted by `make down`.\n"


def up() -> int:
    """Start what isn't running, deploy, and print the addresses of the UIs.

    Returns:
        The exit code: 0 if everything is up, 1 if a server didn't start.

    Raises:
        Exception: Raised if ``MNIST_HOME`` can't be used. `tasks.running.faults.explain` explains it in one line.
    """
    settings = Settings()
    prepare()
    folder = settings.home / "server"
    folder.mkdir(exist_ok=True)
    servers = {"server": settings.prefect_port, "reports": settings.report_port}
    if settings.mlflow_tracking_uri is None:
        servers["mlflow"] = settings.mlflow_port
    pid = running_supervisor(folder)
    if obstacle := find_obstacle(list(servers.values()) if pid is None else []):
        print(f"error: {obstacle}", file=sys.stderr)
        return 1
    if pid is None:
        make_secret(settings.home / "secret")
    variables = environment() | server_environment(settings)
    os.environ.update(variables)
    if pid is None:
        start_supervisor(own_mlflow="mlflow" in servers)
    print(f"waiting for the servers (their logs: {folder}/*.log) …", flush=True)
    deadline = time.monotonic() + 120
    for name, port in servers.items():
        while not in_use(port):  # a server listens when it is ready
            if time.monotonic() > deadline:
                print(f"error: {name} didn't start; see {folder}/{name}.log", file=sys.stderr)
                return 1
            time.sleep(0.5)
    write_private(DOTENV, MARK + "".join(f"{name}='{value}'\n" for name, value in variables.items()))
    asyncio.run(deploy(datetime.fromtimestamp((folder / "supervisord.pid").stat().st_mtime, UTC)))
    print(f"Prefect UI: http://127.0.0.1:{settings.prefect_port}   sign in with the line in {settings.home / 'secret'}")
    print(f"reports:    {variables['MNIST_REPORT_URL']}   the same: user before the colon, password after it")
    if "mlflow" in servers:
        print(f"MLflow UI:  {variables['MNIST_MLFLOW_URL']}   the same")
    print("run it:     prefect deployment run mnist/train --watch   (after `. .venv/bin/activate`)")
    print("stop it:    make down")
    return 0


def find_obstacle(ports: list[int]) -> str | None:
    """Say in one line why the servers can't be started on these ports. None if they can."""
    if taken := [str(port) for port in ports if in_use(port)]:
        return (
            f"port {' and '.join(taken)} is in use; free it, or set "
            "MNIST_PREFECT_PORT, MNIST_REPORT_PORT or MNIST_MLFLOW_PORT"
        )
    if DOTENV.exists() and not DOTENV.read_text().startswith(MARK):
        return f"{DOTENV} wasn't written by make up; move your settings to the environment, and the file away"
    return None


def start_supervisor(own_mlflow: bool) -> None:
    """Start the supervisor, which starts the servers and the worker.

    Args:
        own_mlflow: Whether one of them is MLflow's UI.
    """
    extra = {
        "MNIST_BIN": str(BIN),
        "MNIST_WORKER": socket.gethostname(),
        "MNIST_OWN_MLFLOW": str(own_mlflow).lower(),
    }
    subprocess.run(
        [BIN / "supervisord", "-c", CHECKOUT / "supervisord.conf"], cwd=CHECKOUT, env=os.environ | extra, check=True
    )


def server_environment(settings: Settings) -> dict[str, str]:
    """The variables that the servers, the worker and their clients share: addresses, and the secret."""
    origin = f"http://127.0.0.1:{settings.prefect_port}"
    secret = read_secret(settings.home / "secret")
    variables = {
        "MNIST_PREFECT_PORT": str(settings.prefect_port),
        "MNIST_REPORT_PORT": str(settings.report_port),
        "MNIST_REPORT_URL": f"http://127.0.0.1:{settings.report_port}",
        "MNIST_MLFLOW_PORT": str(settings.mlflow_port),
        "PREFECT_API_URL": f"{origin}/api",
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"{origin}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # By default, the server has these in memory and would lose them. A run that outlives the server would then be
        # ended because its lease on a slot is gone, and its events would be delayed by a quarter of an hour.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect.server.events.ordering.db",
        "PREFECT_CLIENT_MAX_RETRIES": "7",  # 2, 4, … 128 s apart: a run outlives two minutes without a server
    }
    if settings.mlflow_tracking_uri is None:
        variables["MNIST_MLFLOW_URL"] = f"http://127.0.0.1:{settings.mlflow_port}"
    return variables


def make_secret(file: Path) -> None:
    """Make the user and password for all servers, which only their owner can read, unless there are good ones."""
    if fault := secret_fault(file):
        if file.exists():
            print(f"{file} {fault}: it is replaced, so sign in again", flush=True)
        write_private(file, f"mnist:{secrets.token_urlsafe(24)}\n")


def read_secret(file: Path) -> str:
    """The user and password for all servers, as ``user:password``.

    Raises:
        StoreError: Raised if the file is missing, or would let others in.
    """
    if fault := secret_fault(file):
        raise StoreError(f"the secret {file} {fault}; run `make down`, then `make up`, which makes a new one")
    return file.read_text().strip()


def secret_fault(file: Path) -> str | None:
    """Why a secret can't be used: it is missing, too short, or others can read it. None if it is good."""
    if not file.exists():
        return "is missing"
    if file.stat().st_mode & 0o077:
        return "can be read by others"
    user, _, password = file.read_text().strip().partition(":")
    return None if user and len(password) >= MIN_PASSWORD else "is empty or too short"


def in_use(port: int) -> bool:
    """Whether a process listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_private(file: Path, content: str) -> None:
    """Write a file that only its owner can read."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(content)


def running_supervisor(folder: Path) -> int | None:
    """The process id of this home's supervisor, if it runs."""
    try:
        pid = int((folder / "supervisord.pid").read_text())
    except (OSError, ValueError):
        return None
    # Another process may have the number after a reboot, and in a copied home it is the original's supervisor.
    is_ours = "supervisord" in command(pid) and home_of(pid) == folder.parent.resolve()
    return pid if is_ours else None


def home_of(pid: int) -> Path | None:
    """The ``MNIST_HOME`` that a process was started with. None if it has none, or the process is gone."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [Path(os.fsdecode(v.removeprefix(b"MNIST_HOME="))) for v in variables if v.startswith(b"MNIST_HOME=")]
    return found[0].resolve() if found else None


async def deploy(started: datetime) -> None:
    """Create the work pool, apply prefect.yaml, and set up crash recovery. Schedules stay switched on or off.

    Each deploy sends `active: false`, which would undo the user's switch, so the switch is restored.

    Args:
        started: When the supervisor was started, and with it server and worker.
    """
    from prefect import get_client

    from service.recovery import set_up_recovery

    prefect = [str(BIN / "prefect"), "--no-prompt"]
    async with get_client() as client:
        active = {(d.name, s.slug) for d in await client.read_deployments() for s in d.schedules if s.active}
        for command in ("work-pool create local --type process --overwrite", "deploy --all"):
            subprocess.run([*prefect, *command.split()], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
        for deployment in await client.read_deployments():
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in active and not schedule.active:
                    await client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        await set_up_recovery(client, started)


def down() -> int:
    """Stop the supervisor, and everything that it started.

    Returns:
        The exit code: 0 if nothing runs any more, 1 if the supervisor didn't end in time.
    """
    folder = Settings().home / "server"
    pid = running_supervisor(folder)
    if pid is None:
        other = dotenv_values(DOTENV).get("MNIST_HOME")
        if other and Path(other).resolve() != Settings().home.resolve():
            print(f"nothing is running on {Settings().home}; the servers of {other} are left alone")
            return 0
        forget_server()
        print("nothing is running")
        return 0
    # `.env` has what the servers were started with, also if the secret's file is gone.
    started_with = {name: value for name, value in dotenv_values(DOTENV).items() if value}
    os.environ.update(environment() | (started_with or server_environment(Settings())))
    asyncio.run(stop_recovery())
    end_runs(pid)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while running_supervisor(folder):
        if time.monotonic() > deadline:
            print(f"error: the supervisor, process {pid}, doesn't end; see {folder}/supervisord.log", file=sys.stderr)
            return 1
        time.sleep(0.2)
    forget_server()
    print("servers and worker are stopped")
    return 0


async def stop_recovery() -> None:
    """Make the server restart no run from now on: runs end now because a person wants them to."""
    import httpx
    from prefect import get_client

    from service.recovery import remove_recovery

    with suppress(httpx.TransportError):  # a server that is gone restarts nothing
        async with get_client() as client:
            await remove_recovery(client)


def end_runs(supervisor: int) -> None:
    """End each run that the worker started, and let the run tell the server, which marks it as crashed.

    When the worker is stopped, it kills its runs but doesn't tell the server, where they would seem to run for ever.
    """
    workers = [child for child in children(supervisor) if "worker" in command(child)]
    started = {run for worker in workers for run in children(worker)}
    # The process of a run leads a process group, which has everything that the run started.
    for kill, number, seconds in ((os.kill, signal.SIGTERM, 20), (os.killpg, signal.SIGKILL, 5)):
        deadline = time.monotonic() + seconds
        runs = [run for run in started if command(run)]
        for run in runs:
            with suppress(ProcessLookupError):
                kill(run, number)
        while any(map(command, runs)) and time.monotonic() < deadline:
            time.sleep(0.2)
    if started:
        time.sleep(3)  # if a run ended before it could tell the server, the worker tells it


def children(pid: int) -> list[int]:
    """The process ids of the children of a process."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def command(pid: int) -> str:
    """The command line of a process. Empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def forget_server() -> None:
    """Delete `.env`, if `make up` wrote it."""
    if DOTENV.exists() and DOTENV.read_text().startswith(MARK):
        DOTENV.unlink()


if __name__ == "__main__":
    try:
        sys.exit({"up": up, "down": down}[sys.argv[1]]())
    except Exception as error:
        fail(error)
