"""The model registry in MLflow: its versions, their lineage, and the history of its aliases."""
