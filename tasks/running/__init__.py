"""What every step needs to run: cache, locks, log, errors, git."""
