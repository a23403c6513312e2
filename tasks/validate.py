"""Validate: check the data with an expectation suite before a network is trained on them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from prefect import task
from pydantic import BaseModel, ConfigDict, Field, model_validator

from artifacts import data_docs
from artifacts.dataset import load_test, load_train, read_array
from artifacts.errors import MnistError
from artifacts.records.data import N_CLASSES, Dataset, Outcome, Validation
from artifacts.store import put_bytes
from tasks.data.tables import class_means, tabulate_classes, tabulate_images
from tasks.running.cache import StepCache, origin

if TYPE_CHECKING:
    import pandas as pd


class ExpectationError(MnistError):
    """Raised if the data break an expectation whose severity is "error".

    Attributes:
        validation: The outcome of all expectations, with the stored result and Data Docs.
    """

    validation: "Validation"


# Pixels of a side that the networks take.
SIDE = 28
# How many rows that break an expectation are kept as examples; nobody reads 60,000.
N_SAMPLES = 10
# How many broken expectations the error message names; the Data Docs list all of them.
N_NAMED = 3


class ValidateParameters(BaseModel):
    """The bounds of the suite. The defaults fit only MNIST; loosen them for your own data of the same shape.

    The figures for MNIST in the descriptions were measured on its original files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_train: int = Field(default=60_000, ge=1, le=10**6, description="Training images.")
    n_test: int = Field(default=10_000, ge=1, le=10**6, description="Test images.")
    height: int = Field(default=28, ge=1, le=10**4, description="Height of every image, in pixels. Only 28 works yet.")
    width: int = Field(default=28, ge=1, le=10**4, description="Width of every image, in pixels. Only 28 works yet.")
    dtype: Literal["uint8", "uint16", "int32", "int64", "float32", "float64"] = Field(
        default="uint8", description="Type of the images' raw pixels in 0–255."
    )
    pixel_mean_min: float = Field(
        default=0.12,
        ge=0,
        le=1,
        description="Smallest mean intensity of a split, in 0–1. MNIST: train 0.1307, test 0.1325.",
    )
    pixel_mean_max: float = Field(
        default=0.14, ge=0, le=1, description="Largest mean intensity of a split, in 0–1. Fashion-MNIST has 0.286."
    )
    blank_border_min: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="Smallest share of images whose outermost pixels are blank. MNIST: train 0.986, test 0.989.",
    )
    class_share_min: float = Field(
        default=0.08, ge=0, le=1, description="Smallest share of a class in its split. MNIST: 0.0892 (digit 5, test)."
    )
    class_share_max: float = Field(
        default=0.13, ge=0, le=1, description="Largest share of a class in its split. MNIST: 0.1135 (digit 1, test)."
    )
    agreement_min: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="Smallest share of labels that the nearest class mean agrees with. MNIST: train 0.808, test 0.820; "
        "with shuffled labels 0.1.",
    )
    mnist_agreement_min: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Smallest share of labels that the nearest of MNIST's own class means agrees with, at 7×7 pixels. "
        "MNIST: train 0.772, test 0.781; mirrored 0.45, transposed 0.14, with 4 and 9 exchanged 0.65.",
    )
    duplicates_max: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Largest share of images that repeat an earlier image of their split. A single one is a warning. "
        "MNIST: 0.",
    )
    leakage_max: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Largest share of test images that are also training images. A single one is a warning. MNIST: 0.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        for name in ("pixel_mean", "class_share"):
            if getattr(self, f"{name}_min") > getattr(self, f"{name}_max"):
                raise ValueError(f"`{name}_min` is greater than `{name}_max`")
        if (self.height, self.width) != (SIDE, SIDE):
            raise ValueError(f"the networks take images of {SIDE}×{SIDE} pixels; other sizes can't be trained on yet")
        if not self.class_share_min <= 1 / N_CLASSES <= self.class_share_max:
            raise ValueError(
                "the shares of ten classes are 0.1 on average, which `class_share_min` and `class_share_max` exclude"
            )
        return self


@task(name="validate", cache_policy=StepCache(libraries=("great-expectations", "numpy", "pandas")))
def validate_data(dataset: Dataset, parameters: ValidateParameters) -> Validation:
    """Check both splits with the suite, as the same arrays that train and evaluate use.

    Returns:
        The outcome of each expectation. GX's results and Data Docs are in the store.

    Raises:
        ExpectationError: Raised if the data break an expectation whose severity is "error".
    """
    train, test = load_train(dataset), load_test(dataset)
    means = class_means(train)
    train_images = tabulate_images(train, read_array(dataset.x_train).dtype, means)
    test_images = tabulate_images(test, read_array(dataset.x_test).dtype, means)
    test_images["in_train"] = test_images["digest"].isin(train_images["digest"].dropna())

    results = run_suites(
        {
            "train images": (train_images, image_expectations("train", parameters)),
            "train classes": (tabulate_classes(train_images), class_expectations(parameters)),
            "test images": (test_images, image_expectations("test", parameters)),
            "test classes": (tabulate_classes(test_images), class_expectations(parameters)),
        }
    )
    outcomes = tuple(outcome(result["suite_name"], one) for result in results for one in result["results"])
    failures = [o for o in outcomes if not o.success and o.severity == "error"]
    validation = Validation(
        success=not failures,
        outcomes=outcomes,
        result=put_bytes(".json", json.dumps(results, indent=2, allow_nan=False).encode()),
        data_docs=put_bytes(".html", data_docs.render(results, outcomes).encode()),
        origin=origin(),
    )
    if failures:
        error = ExpectationError(describe(failures))
        error.validation = validation
        raise error
    return validation


def image_expectations(split: Literal["train", "test"], parameters: ValidateParameters) -> list[Any]:
    """GX's expectations about a split's table of images, the simplest faults first."""
    n = parameters.n_train if split == "train" else parameters.n_test
    expectations = [
        *_whole_table(n),
        *_label_and_shape(parameters),
        *_pixel_values(parameters),
        *_agreement(parameters),
        *_rare("is_duplicate", parameters.duplicates_max, "repeats an earlier image of the split"),
    ]
    if split == "test":
        expectations += _rare("in_train", parameters.leakage_max, "also stands in train")
    return expectations


def _whole_table(n: int) -> list[Any]:
    """Expect the right number of images and labels."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=n, description=f"The split has {n:,} images."),
        gxe.ExpectColumnValuesToNotBeNull(column="digest", description="Each label belongs to one image."),
        gxe.ExpectColumnValuesToNotBeNull(column="label", description="Each image has one label."),
    ]


def _label_and_shape(parameters: ValidateParameters) -> list[Any]:
    """Expect labels that are digits, and images of one shape and type."""
    import great_expectations.expectations as gxe

    p = parameters
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="label", value_set=list(range(N_CLASSES)), description="Each label is a digit, 0–9."
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="label_dtype", regex="^u?int", description="Labels are stored as integers."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="height", value_set=[p.height], description=f"Each image is {p.height} pixels high."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="width", value_set=[p.width], description=f"Each image is {p.width} pixels wide."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="channels", value_set=[1], description="Each image has one channel, so it is grey."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="dtype", value_set=[p.dtype], description=f"Raw pixels are stored as {p.dtype}."
        ),
    ]


def _pixel_values(parameters: ValidateParameters) -> list[Any]:
    """Expect pixels in 0–1 that look like ink on a blank border."""
    import great_expectations.expectations as gxe

    p = parameters
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="n_not_finite", value_set=[0], description="No pixel is NaN or infinite."
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="pixel_min", min_value=0, max_value=1, description="The darkest pixel, after scaling, is in 0–1."
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="pixel_max",
            min_value=0,
            strict_min=True,
            max_value=1,
            description="The brightest pixel, after scaling, is in 0–1 and isn't 0: no image is blank.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="pixel_range",
            min_value=0,
            strict_min=True,
            description="The brightest pixel differs from the darkest: no image is constant.",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="pixel_mean",
            min_value=p.pixel_mean_min,
            max_value=p.pixel_mean_max,
            description=f"The mean intensity is in {p.pixel_mean_min}–{p.pixel_mean_max}, near MNIST's 0.13.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="border_max",
            max_value=0,
            mostly=p.blank_border_min,
            description=f"The outermost pixels are blank in at least a share of {p.blank_border_min} of the images: "
            "digits are centred, light on dark.",
        ),
    ]


def _agreement(parameters: ValidateParameters) -> list[Any]:
    """Expect labels that match their images."""
    import great_expectations.expectations as gxe

    p = parameters
    return [
        gxe.ExpectColumnMeanToBeBetween(
            column="agrees",
            min_value=p.agreement_min,
            description=f"The nearest class mean of train agrees with a share of at least {p.agreement_min} of the "
            "labels: they aren't shuffled.",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="agrees_with_mnist",
            min_value=p.mnist_agreement_min,
            description="The nearest of MNIST's own class means agrees with a share of at least "
            f"{p.mnist_agreement_min} of the labels: the images are MNIST's digits, upright, with their own labels.",
        ),
    ]


def _rare(column: str, share_max: float, what: str) -> list[Any]:
    """Expect a flag to be rare, and warn if it is set even once."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column=column,
            value_set=[False],
            mostly=1 - share_max,
            description=f"At most a share of {share_max} of the images {what}.",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column=column, value_set=[False], severity="warning", description=f"No image {what}."
        ),
    ]


def class_expectations(parameters: ValidateParameters) -> list[Any]:
    """GX's expectations about a split's table of classes."""
    import great_expectations.expectations as gxe

    p = parameters
    return [
        gxe.ExpectColumnValuesToBeBetween(column="count", min_value=1, description="All ten digits are present."),
        gxe.ExpectColumnValuesToBeBetween(
            column="share",
            min_value=p.class_share_min,
            max_value=p.class_share_max,
            description=f"Classes are balanced: each has a share of {p.class_share_min}–{p.class_share_max}.",
        ),
    ]


def run_suites(suites: Mapping[str, tuple["pd.DataFrame", list[Any]]]) -> list[dict[str, Any]]:
    """Let GX check each table against its expectations.

    Args:
        suites: The table and its expectations, by the name of the suite.

    Returns:
        GX's validation results as JSON, without its time stamps, so that equal data give equal results.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            analytics_enabled=False,
            progress_bars={"globally": False},
        ),
    )
    source = context.data_sources.add_pandas("splits")
    results = []
    for name, (table, expectations) in suites.items():
        batch = (
            source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
        )
        validated = batch.validate(
            gx.ExpectationSuite(name, expectations=expectations),
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": N_SAMPLES},
        )
        # By way of text, to turn NumPy's numbers into Python's.
        result = json.loads(json.dumps(validated.to_json_dict(), allow_nan=False))
        result["meta"] = {"great_expectations_version": gx.__version__}
        results.append(result)
    return results


def outcome(table: str, result: Mapping[str, Any]) -> Outcome:
    """Make a record of one of GX's expectation results, which is JSON."""
    config, figures = result["expectation_config"], result["result"]
    if "unexpected_count" in figures:
        observed = f"{figures['unexpected_count']:,} of {figures['element_count']:,} rows unexpected"
        values = list(dict.fromkeys(_text(value) for value in figures["partial_unexpected_list"]))[:3]
        if values:
            observed += f", e.g. {', '.join(values)}"
    else:
        observed = _text(figures.get("observed_value"))  # is missing if GX itself failed
    return Outcome(
        table=table,
        expectation=config["type"],
        column=config["kwargs"].get("column"),
        meaning=config["description"],
        severity="error" if config["severity"] == "critical" else "warning",
        success=result["success"],
        observed=observed,
        sample_indices=figures.get("partial_unexpected_index_list", ()),
    )


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def describe(failures: list[Outcome]) -> str:
    """Say in one line which expectations the data break, and what to do."""
    named = []
    for failure in failures[:N_NAMED]:
        column = f", column {failure.column}" if failure.column else ""
        rows = f" (rows {', '.join(map(str, failure.sample_indices[:5]))})" if failure.sample_indices else ""
        named.append(
            f"{failure.table}{column}, {failure.expectation}: {failure.meaning} Observed: {failure.observed}{rows}"
        )
    more = f"; and {len(failures) - N_NAMED} more" if len(failures) > N_NAMED else ""
    return (
        f"the data don't pass validation: {'; '.join(named)}{more}. "
        "Correct the data or, if they are right, loosen the bounds (--validate.…)"
    )
