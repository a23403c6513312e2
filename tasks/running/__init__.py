"""What every step stands on: cache, locks, log, errors, git."""
