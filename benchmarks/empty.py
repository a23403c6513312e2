"""An empty Prefect flow: what a run costs before it does anything. With `--mlflow`, the flow imports MLflow.

It starts as `make train` starts a run: with the same settings, and with the running server or its own.
"""

import sys

from service.environment import prepare, server

prepare()


def main() -> None:
    """Run the flow. Imports happen while the server starts, as in `make train`."""
    with server() as ready:
        from prefect import flow

        if "--mlflow" in sys.argv:
            import mlflow  # noqa: F401

        @flow
        def empty() -> None:
            pass

        if ready:
            ready()
        empty()


if __name__ == "__main__":
    main()
