"""Saved models: load a stored model, and digest its weights."""

import hashlib
import logging
import os
import tempfile
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from artifacts.records.model import Model

if TYPE_CHECKING:
    import keras


def import_keras() -> ModuleType:
    """Import Keras with oneDNN's kernels, and hide what TensorFlow's C++ code prints while it starts.

    TensorFlow leaves oneDNN off on processors without AVX-512, although a fit with oneDNN takes 0.6 times the CPU
    seconds there. No option of TensorFlow's turns off what it prints.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras warns there that .h5 is a legacy format
    # TensorFlow warns of each new shape, and the last batch of a user's own data often has one.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryFile() as chatter:
        stderr = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        try:
            import keras
            import tensorflow

            tensorflow.config.list_logical_devices()  # looks for a GPU, and prints that there is none
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    # Whatever the user's keras.json says, since the cache keys don't have it.
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    module: ModuleType = keras
    return module


def load_model(model: Model) -> "keras.Model":
    """Load a stored model. Its bytes are checked against its digest first, and code in the file is never run.

    Raises:
        StoreError: Raised if the file is missing or was altered.
        ValueError: Raised by Keras if the file contains code (as a Lambda layer does), or is no model.
    """
    model.keras.read_bytes()
    return import_keras().saving.load_model(model.keras.path, compile=False, safe_mode=True)


def digest_weights(model: "keras.Model") -> str:
    """SHA-256 of the type, shape and bytes of each weight, in the model's order. It identifies a model."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        array: npt.NDArray[Any] = np.ascontiguousarray(weight)
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
