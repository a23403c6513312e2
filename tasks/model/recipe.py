"""The recipe: what is trained, how it is trained, and the presets."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.model.networks import NETWORKS
from tasks.model.processor import has_bfloat16

# A preset names only what differs from `fast`, whose values are the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "seed": {
        "epochs": 5,
        "batch_size": 32,
        "schedule": "constant",
        "learning_rate": 1e-3,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "label_smoothing": 0.0,
        "validations_per_epoch": 1,
        "precision": "float32",
    },
    "compact": {
        "network": "compact",
        "epochs": 12,
        "batch_size": 128,
        "learning_rate": 6e-3,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "augmentation": 1.0,
        "validations_per_epoch": 1,
    },
}
PRESETS["distilled"] = PRESETS["compact"] | {"teachers": 3, "average_shifts": True, "validation_share": 1 / 30}


def _one_of(kind: str, names: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"no {kind} is called {name!r}; there are {', '.join(names)}")
        return name

    return AfterValidator(check)


def _without_defaults(schema: dict[str, Any]) -> None:
    # A form sends the defaults that it shows, and a value that is sent outweighs the preset.
    for name, field in schema["properties"].items():
        if name != "preset":
            field.pop("default", None)


class TrainParameters(BaseModel):
    """What is trained and how: a preset, and the parameters that differ from it. benchmarks/LOG.md has their origin."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_without_defaults)

    preset: Annotated[str, _one_of("preset", PRESETS)] = Field(
        default="fast",
        description="The recipe. It fills in the parameters that aren't given.",
        json_schema_extra={"enum": list(PRESETS)},
    )
    network: Annotated[str, _one_of("network", NETWORKS)] = Field(
        default="baseline",
        description="The network's name: a function in tasks/model/networks.py.",
        json_schema_extra={"enum": list(NETWORKS)},
    )
    epochs: float = Field(
        default=1.125, ge=0.01, le=1000, description="Passes over the training images. A part of a pass is allowed."
    )
    batch_size: int = Field(
        default=192,
        ge=1,
        le=10_000,
        description="Images per step. The rest of an epoch that doesn't fill a step is left out.",
    )
    schedule: Literal["one-cycle", "constant"] = Field(
        default="one-cycle",
        description="`one-cycle`: the learning rate rises to a peak and falls to nearly nothing. `constant`: it stays.",
    )
    learning_rate: float = Field(default=8e-3, gt=0, le=1, description="Adam's learning rate, at its peak.")
    beta_1: float = Field(default=0.8, ge=0, lt=1, description="Decay rate of Adam's mean of the gradients.")
    beta_2: float = Field(default=0.95, ge=0, lt=1, description="Decay rate of Adam's mean of the squared gradients.")
    label_smoothing: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of a label's weight that is spread over all classes. Answers of teachers stay as they are.",
    )
    augmentation: float = Field(
        default=0.0,
        ge=0,
        le=3,
        description="How much images are changed at random. 1 turns them by up to 10 degrees, and scales, slants and "
        "shifts them as much as people do. 0 leaves them as they are.",
    )
    teachers: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Networks that are trained first. The network then learns their mean answers, not the labels.",
    )
    average_shifts: bool = Field(
        default=False,
        description="Whether the finished network averages over an image and its shifts by a pixel, for five times the "
        "arithmetic.",
    )
    validations_per_epoch: int = Field(
        default=2, ge=1, le=100, description="How often per epoch the network is validated."
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Arithmetic of the fit. `auto`: bfloat16 if the processor has it, else float32."
    )
    validation_share: float = Field(
        default=1 / 12, gt=0, lt=1, description="Share of the training images that is held out to validate on."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the weights and of everything else that is random."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        return PRESETS.get(str(given.get("preset")), {}) | given if isinstance(given, dict) else given


def dtype_policy(parameters: TrainParameters) -> str:
    """Keras's name of the fit's arithmetic: ``mixed_bfloat16`` or ``float32``."""
    if parameters.precision == "auto":
        return "mixed_bfloat16" if has_bfloat16() else "float32"
    return "mixed_bfloat16" if parameters.precision == "bfloat16" else "float32"
