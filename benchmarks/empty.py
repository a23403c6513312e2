"""An empty Prefect flow that imports MLflow: what a run costs before it does anything.

Started as `make train` starts a run: the same settings, and the server that runs, else one of its own.
"""

from flows.environment import prepare, server

prepare()


def main() -> None:
    """Run it; what is imported is imported while the server starts, as `make train` does it."""
    with server() as ready:
        import mlflow  # noqa: F401
        from prefect import flow

        @flow
        def empty() -> None:
            pass

        ready()
        empty()


if __name__ == "__main__":
    main()
