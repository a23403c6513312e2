"""`make up` and `make down`: server and worker under supervision, the work pool, the deployments."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from artifacts.settings import CHECKOUT, Settings
from flows.environment import answers, environment

BIN = Path(sys.executable).parent


def up() -> int:
    """Start what isn't running, deploy, and say where the UI is.

    Returns:
        The exit code: 0 if all is up, 1 if the server didn't start.
    """
    settings = Settings()
    folder = settings.home / "server"
    folder.mkdir(parents=True, exist_ok=True)
    api = f"http://127.0.0.1:{settings.prefect_port}/api"
    pid = running_supervisor(folder)
    if pid is None and answers(api):
        print(f"error: something else answers at {api}; stop it, or set MNIST_PREFECT_PORT", file=sys.stderr)
        return 1
    os.environ.update(environment() | server_environment(settings))
    write_dotenv(environment() | server_environment(settings))
    if pid is None:
        extra = {"MNIST_BIN": str(BIN), "MNIST_WORKER": socket.gethostname()}
        subprocess.run(
            [BIN / "supervisord", "-c", CHECKOUT / "supervisord.conf"],
            cwd=CHECKOUT,
            env=os.environ | extra,
            check=True,
        )
    print(f"waiting for the Prefect server (its log: {folder / 'server.log'}) …", flush=True)
    deadline = time.monotonic() + 120
    while not answers(api):
        if time.monotonic() > deadline:
            print(f"error: the Prefect server didn't start; see {folder / 'server.log'}", file=sys.stderr)
            return 1
        time.sleep(0.5)
    asyncio.run(deploy())
    print(f"Prefect UI: http://127.0.0.1:{settings.prefect_port}   sign in with the line in {settings.home / 'secret'}")
    print("run it:     prefect deployment run mnist/train --watch   (after `. .venv/bin/activate`)")
    print("stop it:    make down")
    return 0


def server_environment(settings: Settings) -> dict[str, str]:
    """What the server, its worker and its clients share: the address, and the secret that opens it."""
    origin = f"http://127.0.0.1:{settings.prefect_port}"
    secret = read_secret(settings.home / "secret")
    return {
        "PREFECT_API_URL": f"{origin}/api",
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"{origin}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


def read_secret(file: Path) -> str:
    """The line that opens server and UI, generated once, readable by its owner alone."""
    if not file.exists():
        write_private(file, f"mnist:{secrets.token_urlsafe(24)}\n")
    return file.read_text().strip()


def write_dotenv(variables: dict[str, str]) -> None:
    """Write the variables where Prefect and our settings look: any `prefect …` in the checkout then just works."""
    lines = [f"{name}='{value}'\n" for name, value in variables.items()]
    write_private(CHECKOUT / ".env", "# Written by `make up`, deleted by `make down`.\n" + "".join(lines))


def write_private(file: Path, content: str) -> None:
    """Write a file that only its owner can read."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(content)


def running_supervisor(folder: Path) -> int | None:
    """The process id of the supervisor, if one runs."""
    try:
        pid = int((folder / "supervisord.pid").read_text())
        os.kill(pid, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    return pid


async def deploy() -> None:
    """Create the work pool and apply prefect.yaml, leaving each schedule as active as it was.

    A deploy sends `active: false` each time; without this, it would undo the user's switch.
    """
    from prefect import get_client

    prefect = [str(BIN / "prefect"), "--no-prompt"]
    async with get_client() as client:
        active = {(d.name, s.slug) for d in await client.read_deployments() for s in d.schedules if s.active}
        for command in ("work-pool create local --type process --overwrite", "deploy --all"):
            subprocess.run([*prefect, *command.split()], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
        for deployment in await client.read_deployments():
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in active and not schedule.active:
                    await client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def down() -> int:
    """Stop the supervisor and with it all that it started.

    Returns:
        The exit code: 0 if nothing runs any more, 1 if it didn't end in time.
    """
    folder = Settings().home / "server"
    (CHECKOUT / ".env").unlink(missing_ok=True)
    pid = running_supervisor(folder)
    if pid is None:
        print("nothing is running")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while running_supervisor(folder):
        if time.monotonic() > deadline:
            print(f"error: the supervisor, process {pid}, doesn't end; see {folder}/supervisord.log", file=sys.stderr)
            return 1
        time.sleep(0.2)
    print("server and worker are stopped")
    return 0


if __name__ == "__main__":
    sys.exit({"up": up, "down": down}[sys.argv[1]]())
