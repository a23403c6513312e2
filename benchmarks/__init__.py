"""What a run costs, next to what a user would run instead: `make bench`, or `python -m benchmarks`."""
