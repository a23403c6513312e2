"""Settings say where things are. They come from the environment (``MNIST_…``) or the file ``.env`` of the checkout.

A setting never changes a result, so it isn't in a cache key. Settings are read when they are needed, never on import.
"""

import functools
import os
from pathlib import Path

from pydantic import Field, HttpUrl, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CHECKOUT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The settings of one process. Each field is read from ``MNIST_<FIELD>``. An empty variable counts as not set."""

    model_config = SettingsConfigDict(
        env_prefix="MNIST_", env_file=CHECKOUT / ".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Field(default=CHECKOUT / ".mnist", description="The folder for all files that runs create.")
    keras_url: HttpUrl = Field(
        default=HttpUrl("https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"),
        description="The address of Keras's mnist.npz, for the source `keras`.",
    )
    download_timeout_seconds: float = Field(
        default=60.0, gt=0, description="How many seconds the download may be silent."
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias="MLFLOW_TRACKING_URI",
        description="The address of MLflow. Default: the SQLite database under `home`.",
    )
    prefect_port: int = Field(default=4200, ge=1, le=65535, description="Port of the Prefect server of `make up`.")
    report_port: int = Field(default=4201, ge=1, le=65535, description="Port on which `make up` serves the reports.")
    mlflow_port: int = Field(default=4202, ge=1, le=65535, description="Port of the MLflow UI of `make up`.")
    report_url: str | None = Field(default=None, description="The address of the reports. Set by `make up`.")
    mlflow_url: str | None = Field(default=None, description="The address of MLflow's UI. Set by `make up`.")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # A worker runs in another folder than the shell, so a relative path starts at the checkout.
        return CHECKOUT / home.expanduser()

    @property
    def prefect_database(self) -> Path:
        """The database of Prefect's server, unless Prefect's own settings name another."""
        return Path(os.environ.get("PREFECT_HOME", self.home / "prefect")) / "prefect.db"

    @property
    def tracking_uri(self) -> str:
        """The address of the registry, also if `mlflow_tracking_uri` isn't set."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home}/mlflow/mlflow.db"

    @property
    def registry_database(self) -> Path | None:
        """The SQLite file of the registry. None if the registry is a server or another kind of database."""
        scheme, _, path = self.tracking_uri.partition(":///")
        return Path(path).resolve() if scheme == "sqlite" else None


def home() -> Path:
    """The folder for all files that runs create. `Settings` has it too, but takes milliseconds, and runs ask often."""
    return _home(os.environ.get("MNIST_HOME"))


@functools.lru_cache(maxsize=1)
def _home(variable: str | None) -> Path:
    del variable
    return Settings().home
