"""The seed: the steps of the notebook "CNN on MNIST" of 2020, in one script, as the notebook did them.

There are two differences: the images come from a package, not from a download, and the script prints how long the fit
took. `--epochs 1` makes it shorter.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib as mpl
import numpy as np
from keras import layers

from tasks.data.sources import package_file, read_package

mpl.use("Agg")
import matplotlib.pyplot as plt


def compiled() -> keras.Model:
    """The notebook's network, ready to fit."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 2),
            layers.Conv2D(64, 2, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(1000, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Load, train, draw, save. The last line is JSON with the seconds of the fit and the number of wrong images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    epochs = parser.parse_args().epochs

    arrays = read_package(package_file())
    x_train, x_test = (arrays[name].reshape(-1, 28, 28, 1) / np.float32(255) for name in ("x_train", "x_test"))
    y_train, y_test = arrays["y_train"], arrays["y_test"]
    model = compiled()
    wall, cpu = time.perf_counter(), time.process_time()
    history = model.fit(x_train, y_train, epochs=epochs, validation_data=(x_test, y_test), verbose=0)
    told = {"fit": time.perf_counter() - wall, "fit_cpu": time.process_time() - cpu}

    with tempfile.TemporaryDirectory() as folder:
        for name, values in history.history.items():
            plt.plot(values, label=name)
        plt.legend()
        plt.grid()
        plt.savefig(Path(folder) / "curves.png")
        model.evaluate(x_test, y_test, verbose=0)
        predictions = model.predict(x_test, verbose=0).argmax(axis=1)
        wrong = np.flatnonzero(predictions != y_test)
        _, axes = plt.subplots(4, 4)
        for axis, index in zip(axes.flat, np.random.default_rng(0).choice(wrong, 16, replace=False), strict=True):
            axis.imshow(x_test[index, :, :, 0], cmap="gray")
            axis.set_title(f"Label {y_test[index]}, Predict {predictions[index]}")
            axis.axis("off")
        plt.savefig(Path(folder) / "wrong.png")
        model.save(Path(folder) / "MNIST_CNN_model.h5")
    sys.stdout.write(json.dumps(told | {"n_wrong": len(wrong)}) + "\n")


if __name__ == "__main__":
    main()
