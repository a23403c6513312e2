"""What a run costs, beside what a user would run instead; `python -m benchmarks`, or `make bench`."""
