"""The web servers that uvicorn runs for `make up`: Prefect's, the reports', MLflow's; each behind the secret."""

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


# A report brings its styles and pictures along. Whatever else gets into one loads nothing, and sends nothing anywhere.
REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",  # a browser asks whether the file is still the same
}


class RequireSecret:
    """Middleware that answers 401 to whoever doesn't bring the secret, by basic auth.

    A browser sends a password that it knows with requests that other pages make, too: those are refused.
    """

    def __init__(self, app: ASGIApp, secret: str):
        """Guard `app` with a `secret` of the form ``user:password``."""
        self.app = app
        self.expected = base64.b64encode(secret.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app do it."""
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
            return await PlainTextResponse("asked for by another site\n", status_code=403)(scope, receive, send)
        return await self.app(scope, receive, send)


class AddHeaders:
    """Middleware that sets headers on every response."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]):
        """Set `headers` on the responses of `app`."""
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the app answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def reports() -> ASGIApp:
    """The runs: an index of them, and the files of their folders, to look at."""
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
        # Files of runs are hard links, so a symbolic link that leads elsewhere is none of theirs: it isn't followed.
        routes=[Route("/", index), Mount("/runs", StaticFiles(directory=runs))],
        middleware=[
            Middleware(AddHeaders, headers=REPORT_HEADERS),
            Middleware(RequireSecret, secret=read_secret(settings.home / "secret")),
        ],
    )


def prefect() -> ASGIApp:
    """Prefect's API and UI, as `prefect server start` serves them, but for four things.

    Prefect looks for the token against cross-site requests before it looks who asks, so its answer to a stranger's POST
    would be 403. Here the token is looked for last, by the API, and a stranger gets 401 from every route.

    The UI asks an analytics service for its settings, whatever the server's settings say: browsers are told not to.

    Whoever creates a work pool has the server ask GitHub which kinds there are. It has a copy of the answer, which it
    takes if it can't ask.

    And automations read before they write: if another request writes in between, SQLite calls its database locked. Here
    they get hold of it first.
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
    """Prefect's API without its UI and services, for one run of the command line, and until that ends, however it does.

    Whoever starts it holds the other end of its input.
    """
    from prefect.server.api.server import create_app

    def end_with_input() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_input, daemon=True).start()
    return create_app(ephemeral=True, final=True)


def mlflow() -> ASGIApp:
    """MLflow's UI and API on the registry under ``MNIST_HOME``; MLflow's own sign-in would need a database of users."""
    settings = Settings()
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    from tasks.running.locks import registry_lock

    with registry_lock():  # whoever is first makes the database
        initialize_backend_stores(
            settings.tracking_uri, settings.tracking_uri, (settings.home / "mlflow" / "artifacts").as_uri()
        )
    return RequireSecret(app, read_secret(settings.home / "secret"))
