"""The steps of a run, one file a step: its parameters, its task, and the plain functions that do its work."""
