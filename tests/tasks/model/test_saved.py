"""Keras computes as the recipes expect, whatever the user has told it."""

import json
import subprocess
import sys

import pytest

from artifacts.settings import CHECKOUT

SEEN = """
import json, os
from tasks.model.fit import build
from tasks.model.saved import digest_weights, import_keras
keras = import_keras()
model = build("compact", "float32", 0)
print(json.dumps([keras.config.backend(), model.input_shape, digest_weights(model)]))
"""


@pytest.mark.expensive
def test_the_users_keras_settings_change_nothing(tmp_path):
    hostile = {"floatx": "float64", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(hostile))

    def seen(**environment):
        done = subprocess.run(
            [sys.executable, "-c", SEEN], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    assert seen(KERAS_HOME=str(tmp_path), KERAS_BACKEND="torch") == seen(KERAS_HOME=str(tmp_path / "none"))
