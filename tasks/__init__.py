"""The steps of a run, one file per step: its parameters, its task, and the plain functions that do its work."""
