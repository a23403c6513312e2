"""The probe: load a saved model alone in a fresh interpreter, without this project and without a network.

Run as ``python -I probe.py model.keras images.npy probabilities.npy``. It prints its measurements as JSON.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable


def main() -> None:
    """Load the model, predict the images, and print load time, latencies and peak memory."""
    model_file, images_file, probabilities_file = sys.argv[1:]
    sys.addaudithook(refuse_network)

    import keras
    import numpy as np

    images = np.load(images_file, allow_pickle=False)
    started = time.perf_counter()
    model = keras.saving.load_model(model_file, compile=False, safe_mode=True)
    load_seconds = time.perf_counter() - started
    np.save(probabilities_file, model.predict(images, batch_size=1000, verbose=0))
    print(  # noqa: T201 - the answer to the process that started this one
        json.dumps(
            {
                "load_seconds": load_seconds,
                "seconds_for_1": median_seconds(lambda: model(images[:1], training=False).numpy(), times=20),
                "seconds_for_1000": median_seconds(lambda: model(images[:1000], training=False).numpy(), times=3),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def median_seconds(call: Callable[[], object], times: int) -> float:
    """The median wall time of a call, in seconds. The first call isn't counted."""
    call()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook that forbids the network: a model that needs one to load is incomplete."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise PermissionError(f"the model tried to reach a network: {arguments[-1]}")


if __name__ == "__main__":
    main()
