"""An empty Prefect flow, with `--mlflow` one that imports MLflow: what a run costs before it does anything.

Started as `make train` starts a run: the same settings, and the server that runs, else one of its own.
"""

import sys

from service.environment import prepare, server

prepare()


def main() -> None:
    """Run it; what is imported is imported while the server starts, as `make train` does it."""
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
