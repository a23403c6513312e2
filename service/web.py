"""The web servers that uvicorn runs for `make up`: Prefect, the reports, MLflow. Each of them needs the secret."""

import base64
import hmac
import mimetypes
import os
import signal
import sys
import threading
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from artifacts.index import index_html, read_page
from artifacts.settings import Settings
from service.server import read_secret

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession


# A report contains its styles and pictures. Anything else that gets into a report can load and send nothing.
REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",  # the browser must ask whether the file is still the same
}


class RequireSecret:
    """Middleware that answers 401 to requests without the secret, by basic authentication.

    A browser also sends a known password with requests of other pages. Those requests are refused.
    """

    def __init__(self, app: ASGIApp, secret: str):
        """Guard `app` with a `secret` of the form ``user:password``."""
        self.app = app
        self.expected = base64.b64encode(secret.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the app."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic" or not hmac.compare_digest(given.strip().encode(), self.expected):
            refusal = PlainTextResponse(
                "sign in with the user and password in the file `secret` of MNIST_HOME\n",
                status_code=401,
                headers={"WWW-Authenticate": 'Basic realm="MNIST"'},
            )
            return await refusal(scope, receive, send)
        if headers.get("Origin", origin := f"{scope['scheme']}://{headers.get('Host')}") != origin:
            return await PlainTextResponse("requests of other sites are refused\n", status_code=403)(
                scope, receive, send
            )
        return await self.app(scope, receive, send)


class AddHeaders:
    """Middleware that sets headers on every response."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]):
        """Set `headers` on the responses of `app`."""
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def reports() -> ASGIApp:
    """The reports: an index of the runs, and the files in their folders."""
    settings = Settings()
    runs = settings.home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    mimetypes.add_type("application/octet-stream", ".keras")
    elsewhere = {"Prefect": f"http://127.0.0.1:{settings.prefect_port}"}
    if settings.mlflow_url:
        elsewhere["MLflow"] = settings.mlflow_url

    async def index(request: Request) -> HTMLResponse:
        asked = request.query_params.get("page", "")
        number = int(asked) if asked.isdecimal() and len(asked) < 10 else 1
        return HTMLResponse(await run_in_threadpool(lambda: index_html(read_page(runs, number), elsewhere)))

    return Starlette(
        # The files of runs are hard links. A symbolic link that leads out of the folder isn't a run's: it isn't served.
        routes=[Route("/", index), Mount("/runs", StaticFiles(directory=runs))],
        middleware=[
            Middleware(AddHeaders, headers=REPORT_HEADERS),
            Middleware(RequireSecret, secret=read_secret(settings.home / "secret")),
        ],
    )


def prefect() -> ASGIApp:
    """Prefect's API and UI, as `prefect server start` serves them, with four differences.

    Prefect checks the token against cross-site requests before it checks the password, so a POST of a stranger would
    get 403. Here the API checks the token last, and a stranger gets 401 from every route.

    The UI calls an analytics service, whatever the server's settings say. Here browsers are told not to.

    When a work pool is created, the server asks GitHub for the kinds of work pools. Here it uses its own copy of the
    answer, as it does when it can't ask.

    Automations read before they write. If another request writes in between, SQLite reports a locked database. Here
    automations lock the database first.
    """
    from prefect.server.api.collections import KNOWN_VIEWS
    from prefect.server.api.middleware import CsrfMiddleware
    from prefect.server.api.server import create_app
    from prefect.server.database import provide_database_interface
    from prefect.server.events import triggers

    def session_of_automations(begin_transaction: bool = False) -> AbstractAsyncContextManager["AsyncSession"]:
        return provide_database_interface().session_context(begin_transaction, with_for_update=begin_transaction)

    triggers.automations_session = session_of_automations  # type: ignore[assignment, attr-defined]
    KNOWN_VIEWS.update(dict.fromkeys(KNOWN_VIEWS, "nowhere:"))
    app = create_app(final=True)
    csrf = next(m for m in app.user_middleware if m.cls is CsrfMiddleware)  # type: ignore[comparison-overlap]
    app.user_middleware.remove(csrf)
    app.api_app.user_middleware.append(csrf)  # type: ignore[attr-defined]
    own = "'self' data: blob:"
    address = f"127.0.0.1:{Settings().prefect_port}"
    policy = f"connect-src {own} http://{address} ws://{address}; img-src {own}; frame-ancestors 'none'"
    return AddHeaders(app, {"Content-Security-Policy": policy})


def temporary() -> "FastAPI":
    """Prefect's API without its UI and services, for one run of the command line. It ends with that run in any case.

    The process that starts it holds the other end of its input.
    """
    from prefect.server.api.server import create_app

    def end_with_input() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_input, daemon=True).start()
    return create_app(ephemeral=True, final=True)


def mlflow() -> ASGIApp:
    """MLflow's UI and API on the registry under ``MNIST_HOME``. MLflow's own sign-in would need a database of users."""
    settings = Settings()
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    from tasks.running.locks import registry_lock

    with registry_lock():  # the first to ask makes the database
        initialize_backend_stores(
            settings.tracking_uri, settings.tracking_uri, (settings.home / "mlflow" / "artifacts").as_uri()
        )
    return RequireSecret(app, read_secret(settings.home / "secret"))
