"""What a run leaves behind: records, the store, figures, the report. Knows neither Prefect nor Keras."""
