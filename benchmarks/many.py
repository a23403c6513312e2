"""`python -m benchmarks.many N`: run the pipeline N times in one process, every step but the first run's reused."""

import sys

from flows.environment import prepare, server

prepare()


def main() -> None:
    """Run it, with the defaults of `make train`."""
    with server() as ready:
        from flows.train import mnist

        ready()
        for _ in range(int(sys.argv[1])):
            mnist()


if __name__ == "__main__":
    main()
