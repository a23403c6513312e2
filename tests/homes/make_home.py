"""Make the archive of a home as an earlier version leaves it: two registered versions, each promoted in its turn.

``.venv/bin/python tests/homes/make_home.py 609dced tests/homes/0.1.0.tar.xz`` trains the small network `compact` on the
first images of MNIST, with the code of that commit and the libraries of this virtual environment.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tasks.data.sources import package_file, read_package  # noqa: E402

# In the names of version 0.1.0. Whatever isn't shown to be worse becomes champion, so both versions are promoted.
FLAGS = [
    "--ingest.source=path",
    "--validation.n_train=200",
    "--validation.n_test=100",
    "--validation.pixel_mean_min=0.11",
    "--validation.pixel_mean_max=0.15",
    "--validation.blank_border_min=0.95",
    "--validation.class_share_min=0.02",
    "--validation.class_share_max=0.25",
    "--validation.agreement_min=0.6",
    "--train.preset=compact",
    "--train.epochs=1",
    "--train.batch_size=32",
    "--train.precision=float32",
    "--train.validation_share=0.1",
    "--gate.minimum_accuracy=0",
    "--gate.maximum_calibration_error=1",
    "--gate.maximum_latency=1000",
    "--gate.margin=1",
    "--gate.slice_margin=1",
]


def main(revision: str, archive: Path) -> None:
    """Train twice with the code of a revision, and pack the home."""
    arrays = read_package(package_file())
    with tempfile.TemporaryDirectory() as folder:
        home, checkout, sample = Path(folder) / "home", Path(folder) / "checkout", Path(folder) / "sample.npz"
        np.savez(sample, **{name: array[: 200 if "train" in name else 100] for name, array in arrays.items()})
        subprocess.run(["git", "clone", "--quiet", CHECKOUT, checkout], check=True)
        subprocess.run(["git", "checkout", "--quiet", revision], cwd=checkout, check=True)
        for seed in (0, 1):
            own = [f"--ingest.path={sample}", f"--train.seed={seed}", "--gate.promote_if=not worse"]
            subprocess.run(
                [sys.executable, "-m", "flows", "train", *FLAGS, *own],
                cwd=checkout,
                env=os.environ | {"MNIST_HOME": str(home)},
                check=True,
            )
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(home, "home")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
