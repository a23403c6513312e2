"""Where things are: settings come from the environment (``MNIST_…``) or the checkout's ``.env``.

A setting never changes a result, so it is no part of a cache key. Settings are read when needed, never on import.
"""

import functools
import os
from pathlib import Path

from pydantic import Field, HttpUrl, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CHECKOUT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The settings of one process; each field is read from ``MNIST_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="MNIST_", env_file=CHECKOUT / ".env", extra="ignore", frozen=True)

    home: Path = Field(default=CHECKOUT / ".mnist", description="The root of everything that runs make.")
    keras_url: HttpUrl = Field(
        default=HttpUrl("https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"),
        description="The address of Keras's mnist.npz, for the source `keras`.",
    )
    download_timeout_seconds: float = Field(
        default=60.0, gt=0, description="How long the download may be silent, in seconds."
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias="MLFLOW_TRACKING_URI",
        description="MLflow's address; none for the SQLite database under `home`.",
    )
    prefect_port: int = Field(default=4200, ge=1, le=65535, description="Port of `make up`'s Prefect server.")
    report_port: int = Field(default=4201, ge=1, le=65535, description="Port on which `make up` serves the runs.")
    mlflow_port: int = Field(default=4202, ge=1, le=65535, description="Port of `make up`'s MLflow UI.")
    report_url: str | None = Field(default=None, description="Where the runs are served; none without `make up`.")
    mlflow_url: str | None = Field(default=None, description="Where MLflow's UI is; none without `make up`.")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # A worker runs elsewhere than the shell that set it: a relative path means the checkout's.
        return CHECKOUT / home.expanduser()

    @property
    def prefect_database(self) -> Path:
        """Where Prefect's server keeps the history of runs, unless its own settings say otherwise."""
        return Path(os.environ.get("PREFECT_HOME", self.home / "prefect")) / "prefect.db"

    @property
    def tracking_uri(self) -> str:
        """The registry's address, which `mlflow_tracking_uri` may leave open."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home}/mlflow/mlflow.db"

    @property
    def registry_database(self) -> Path | None:
        """The registry's SQLite file; none if the registry is a server or another kind of database."""
        scheme, _, path = self.tracking_uri.partition(":///")
        return Path(path).resolve() if scheme == "sqlite" else None


def home() -> Path:
    """The root of everything that runs make; `Settings` say the same, but take milliseconds, and a run asks often."""
    return _home(os.environ.get("MNIST_HOME"))


@functools.lru_cache(maxsize=1)
def _home(variable: str | None) -> Path:
    del variable
    return Settings().home
