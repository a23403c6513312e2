"""What a run leaves behind: records, the store, pictures, the report. Knows neither Prefect nor Keras."""

import time

# Set before this process loads any other module of the project; see `tasks.running.code`.
LOADING_SINCE = time.time()
