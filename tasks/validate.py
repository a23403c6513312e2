"""Validate: the expectation suite that the data must meet before anything is trained on them."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from prefect import task
from pydantic import BaseModel, ConfigDict, Field, model_validator

from artifacts import data_docs
from artifacts.dataset import Images, Split, load_test, load_train, read_array
from artifacts.errors import ValidationError
from artifacts.records import N_CLASSES, Dataset, Outcome, Validation
from artifacts.store import put_bytes
from tasks.caching import StepCache, origin

if TYPE_CHECKING:
    import pandas as pd

# How many broken rows of an expectation are kept as samples; 60,000 would help nobody.
N_SAMPLES = 10
# How many broken expectations the error names; the Data Docs list all.
N_NAMED = 3
# Images described at once.
BLOCK = 20_000
# MNIST's mean training image of each class, 0–9, shrunk to 7×7: two hexadecimal digits a pixel.
MNIST_MEANS = (
    "000000010100000002247a862900001480786c7604004680133080080067622173580300369e9b5f0f0000010607010000",
    "000000000000000000043f480d00000003714f0300000004a71b00000000229b0a00000006436510010000000405010000",
    "0000040b060100000d5088711700000e2a357525000008295e751702013c8ca779390901327357452a0400000101010000",
    "0000010201000000135888651100010f2a617f16000004469d7f130002131823792c000332788c69100000041012040000",
    "0000000000000000051a192b2102001464316e2b0100339b65a22101001b4d7f7211000001144c3b08000000050d090100",
    "00000000010000000322535a3b0a000b6570412609001079774b0e0000182539611f0100206d7d550f0000010d11050000",
    "00000514180500000220634109000007525f190c000013856b7d440400169c8d8a410200043e733e070000000000000000",
    "00000000000000000718221e080004348487a631000114212692160000030e6d5c060000022a74220100000527330e0100",
    "0000000000000000032771702602000e6961764305000752b2711101000b6b83500e0000167b8a500b0000011118060000",
    "000000000000000001104336070000117765851f0000237d6fa11200000933696607000001165a3a070000011324160400",
)


class ValidateParameters(BaseModel):
    """The suite's bounds. The defaults fit MNIST alone; loosen them for data of your own in its shape.

    MNIST's figures in the descriptions were measured on its original files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_train: int = Field(default=60_000, ge=1, le=10**6, description="Training images.")
    n_test: int = Field(default=10_000, ge=1, le=10**6, description="Test images.")
    height: int = Field(default=28, ge=1, le=10**4, description="Height of every image, in pixels.")
    width: int = Field(default=28, ge=1, le=10**4, description="Width of every image, in pixels.")
    dtype: Literal["uint8", "uint16", "int32", "int64", "float32", "float64"] = Field(
        default="uint8", description="Type of the images' raw pixels in 0–255."
    )
    pixel_mean_min: float = Field(
        default=0.12,
        ge=0,
        le=1,
        description="Least mean intensity of a split, in 0–1; MNIST: train 0.1307, test 0.1325.",
    )
    pixel_mean_max: float = Field(
        default=0.14, ge=0, le=1, description="Greatest mean intensity of a split, in 0–1; Fashion-MNIST has 0.286."
    )
    blank_border_min: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="Least share of images whose outermost pixels are blank; MNIST: train 0.986, test 0.989.",
    )
    class_share_min: float = Field(
        default=0.08, ge=0, le=1, description="Least share of a class in its split; MNIST: 0.0892 (digit 5, test)."
    )
    class_share_max: float = Field(
        default=0.13, ge=0, le=1, description="Greatest share of a class in its split; MNIST: 0.1135 (digit 1, test)."
    )
    agreement_min: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="Least share of labels that the nearest class mean agrees with; MNIST: train 0.808, test 0.820, "
        "with shuffled labels 0.1.",
    )
    mnist_agreement_min: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Least share of labels that the nearest of MNIST's own class means agrees with, at 7×7 pixels; "
        "MNIST: train 0.772, test 0.781; mirrored 0.45, transposed 0.14, with 4 and 9 exchanged 0.65.",
    )
    duplicates_max: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Greatest share of images that repeat an earlier one of their split; any is a warning. MNIST: 0.",
    )
    leakage_max: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Greatest share of test images that also stand in train; any is a warning. MNIST: 0.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        for name in ("pixel_mean", "class_share"):
            if getattr(self, f"{name}_min") > getattr(self, f"{name}_max"):
                raise ValueError(f"`{name}_min` is greater than `{name}_max`")
        if not self.class_share_min <= 1 / N_CLASSES <= self.class_share_max:
            raise ValueError(
                "the shares of ten classes are 0.1 on average: `class_share_min` and `_max` leave that out"
            )
        return self


@task(name="validate", cache_policy=StepCache(libraries=("great-expectations", "numpy", "pandas")))
def validate_data(dataset: Dataset, parameters: ValidateParameters) -> Validation:
    """Check both splits, as train and evaluate will consume them, against the suite.

    Returns:
        The outcome of each expectation; GX's results and Data Docs lie in the store.

    Raises:
        ValidationError: Raised if the data break an expectation of level error.
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
        error = ValidationError(describe(failures))
        error.validation = validation
        raise error
    return validation


def flatten(images: Images) -> Images:
    """One row an image, shape ``(n, pixels)``."""
    return np.ascontiguousarray(images.reshape(len(images), math.prod(images.shape[1:])))


def class_means(train: Split) -> Images:
    """The mean training image of each class, shape ``(10, pixels)``; NaN for a class without images."""
    n = min(len(train.x), len(train.y))  # more of the one than of the other is reported by the suite
    pixels, labels = flatten(train.x[:n]), train.y[:n]
    means = np.full((N_CLASSES, pixels.shape[1]), np.nan, np.float32)
    for label in range(N_CLASSES):
        members = pixels[labels == label]
        members = members[np.isfinite(members).all(axis=1)]
        if len(members):
            means[label] = members.mean(axis=0, dtype=np.float64)
    return means


def mnist_means() -> Images:
    """MNIST's own class means, shape ``(10, 49)``, as `shrink` makes images."""
    return np.array([list(bytes.fromhex(mean)) for mean in MNIST_MEANS], np.float32) / np.float32(255)


def predict_by_class_mean(pixels: Images, means: Images) -> npt.NDArray[np.integer[Any]]:
    """The label of the nearest class mean for each row of `pixels`; −1 where the sizes differ.

    No model worth its name, but its 81 % on MNIST fall to 10 % if labels are shuffled.
    """
    if pixels.shape[1] != means.shape[1]:
        return np.full(len(pixels), -1)
    with np.errstate(invalid="ignore", over="ignore"):  # pixels not finite, or huge: the suite reports them
        # |p − m|² less |p|², which is the same for every class.
        distances = (means**2).sum(axis=1) - pixels @ (2 * means.T)
    nearest: npt.NDArray[np.integer[Any]] = np.nan_to_num(distances, nan=np.inf).argmin(axis=1)
    return nearest


def shrink(images: Images) -> Images:
    """One row an image, shape ``(n, pixels)``, of 7×7 pixels if the images are 28×28, else as they are."""
    if images.shape[1:] != (28, 28, 1):
        return flatten(images)
    shrunk: Images = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4))
    return flatten(shrunk)


def tabulate_images(split: Split, dtype: np.dtype[Any], means: Images) -> "pd.DataFrame":
    """Make the table of a split that the suite checks, one row an image.

    Args:
        split: The images and labels as train and evaluate consume them.
        dtype: Type of the raw pixels.
        means: The class means of the training split.

    Returns:
        A row for each image or label, whichever are more: a label without image, or an image without label, leaves
        nulls. The pixel figures are null for an image that isn't finite, so that only `n_not_finite` reports it.
    """
    import pandas as pd

    x, y = split
    # In blocks: what is computed of all pixels at once takes several times their memory.
    blocks = [describe_images(x[start : start + BLOCK], means) for start in range(0, max(len(x), 1), BLOCK)]
    images = pd.concat(blocks, ignore_index=True)
    images["dtype"] = dtype.name
    images["is_duplicate"] = images["digest"].duplicated()
    labels = pd.DataFrame({"label": pd.Series(y).where(np.isfinite(y)), "label_dtype": y.dtype.name})
    table = images.join(labels, how="outer")
    judged = (table["n_not_finite"] == 0) & table["label"].notna()
    for column, nearest in {"agrees": "nearest_class", "agrees_with_mnist": "nearest_in_mnist"}.items():
        table[column] = (table[nearest] == table["label"]).astype(float).where(judged)
    return table


def describe_images(x: Images, means: Images) -> "pd.DataFrame":
    """Make the columns of `tabulate_images` that each image has for itself."""
    import pandas as pd

    pixels = flatten(x)
    border = flatten(np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1))
    height, width, channels = (*x.shape[1:], 0)[:3]  # no channels, should their axis be missing
    n_not_finite = np.count_nonzero(~np.isfinite(pixels), axis=1)
    with np.errstate(invalid="ignore"):
        figures = pd.DataFrame(
            {
                "pixel_min": pixels.min(axis=1),
                "pixel_max": pixels.max(axis=1),
                "pixel_range": pixels.max(axis=1) - pixels.min(axis=1),
                "border_max": border.max(axis=1),
                "pixel_mean": pixels.mean(axis=1, dtype=np.float64),
            }
        )
    figures.loc[n_not_finite > 0] = np.nan
    return pd.DataFrame(
        {
            "digest": pd.Series([hashlib.blake2b(row, digest_size=16).hexdigest() for row in pixels], dtype=str),
            "height": height,
            "width": width,
            "channels": channels,
            "n_not_finite": n_not_finite,
            "nearest_class": predict_by_class_mean(pixels, means),
            "nearest_in_mnist": predict_by_class_mean(shrink(x), mnist_means()),
        }
    ).join(figures)


def tabulate_classes(images: "pd.DataFrame") -> "pd.DataFrame":
    """Make the table of a split's classes, one row a class, the row's index being its label."""
    import pandas as pd

    count = images["label"].value_counts().reindex(range(N_CLASSES), fill_value=0)
    return pd.DataFrame({"count": count, "share": count / images["label"].count()}).rename_axis(None)


def image_expectations(split: Literal["train", "test"], parameters: ValidateParameters) -> list[Any]:
    """What is expected of a split's table of images: GX's expectations, the plainest faults first."""
    import great_expectations.expectations as gxe

    p = parameters
    n = p.n_train if split == "train" else p.n_test
    expectations = [
        gxe.ExpectTableRowCountToEqual(value=n, description=f"The split has {n:,} images."),
        gxe.ExpectColumnValuesToNotBeNull(column="digest", description="Each label belongs to one image."),
        gxe.ExpectColumnValuesToNotBeNull(column="label", description="Each image has one label."),
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
            column="channels", value_set=[1], description="Each image has one channel: it is grey."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="dtype", value_set=[p.dtype], description=f"Raw pixels are stored as {p.dtype}."
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="n_not_finite", value_set=[0], description="No pixel is NaN or infinite."
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="pixel_min", min_value=0, max_value=1, description="The darkest pixel, once scaled, lies in 0–1."
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="pixel_max",
            min_value=0,
            strict_min=True,
            max_value=1,
            description="The brightest pixel, once scaled, lies in 0–1 and isn't 0: no image is blank.",
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
            description=f"The mean intensity lies in {p.pixel_mean_min}–{p.pixel_mean_max}, near MNIST's 0.13.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="border_max",
            max_value=0,
            mostly=p.blank_border_min,
            description=f"The outermost pixels are blank in a share of at least {p.blank_border_min}: "
            "digits are centred, light on dark.",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="agrees",
            min_value=p.agreement_min,
            description=f"The nearest class mean of train agrees with a share of at least {p.agreement_min} of labels: "
            "they aren't shuffled.",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="agrees_with_mnist",
            min_value=p.mnist_agreement_min,
            description=f"MNIST's own nearest class mean agrees with a share of at least {p.mnist_agreement_min} "
            "of labels: the images are MNIST's digits, upright, and called what they are.",
        ),
        *_rare("is_duplicate", p.duplicates_max, "repeats an earlier one of the split"),
    ]
    if split == "test":
        expectations += _rare("in_train", p.leakage_max, "also stands in train")
    return expectations


def _rare(column: str, share_max: float, what: str) -> list[Any]:
    """Expect a flag to be rare, and warn if it is set at all."""
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
    """What is expected of a split's table of classes: GX's expectations."""
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
        suites: Table and expectations by the suite's name.

    Returns:
        GX's validation results as JSON, without its clock times, so that equal data give equal results.
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
        result = json.loads(json.dumps(validated.to_json_dict(), allow_nan=False))  # rid of NumPy's numbers
        result["meta"] = {"great_expectations_version": gx.__version__}
        results.append(result)
    return results


def outcome(table: str, result: Mapping[str, Any]) -> Outcome:
    """Put one of GX's expectation results, as JSON, into a record."""
    config, figures = result["expectation_config"], result["result"]
    if "unexpected_count" in figures:
        observed = f"{figures['unexpected_count']:,} of {figures['element_count']:,} rows unexpected"
        values = list(dict.fromkeys(_text(value) for value in figures["partial_unexpected_list"]))[:3]
        if values:
            observed += f", e.g. {', '.join(values)}"
    else:
        observed = _text(figures.get("observed_value"))  # none if GX itself failed
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
    """Say in one line what the data break, and what to do."""
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
        "Mend the data or, if they are as they should be, loosen the bounds (--validation.…)"
    )
