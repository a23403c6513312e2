"""What a run leaves behind: records, the store, pictures, the report. This package knows neither Prefect nor Keras."""

import time

# This is set before the process loads any other module of the project; see `tasks.running.code`.
LOADING_SINCE = time.time()
