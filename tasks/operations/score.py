"""Score: label other images with the champion, batch by batch, and say whether they look like its training data."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import AfterValidator, Field

from artifacts.dataset import scale
from artifacts.errors import DataError, ModelError, RegistryError
from artifacts.markdown import escape_markdown
from artifacts.pages import plural
from artifacts.records.base import Record
from artifacts.records.release import Version
from tasks.data.drift import Drift, Profile
from tasks.data.images import BATCH, Pixels, as_bytes, prepare, read_batches
from tasks.model.saved import digest_weights, load_model
from tasks.registry.versions import CHAMPION, PROFILE, REGISTERED_MODEL, connect, version_by_alias
from tasks.running.logs import run_logger

if TYPE_CHECKING:
    import keras
    import pandas as pd


def known_format(output: Path) -> Path:
    """Check that the name of an output ends in .csv or .parquet.

    Raises:
        ValueError: Raised if it has another ending.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise ValueError("the output's name must end in .csv or .parquet")
    return output


ImagesPath = Annotated[
    Path,
    Field(
        description="An .npz (its x_test, images, or first array of shape (n, height, width)), an IDX file of images, "
        "gzipped (.gz) or not, or a folder of PNGs of any size. Light on dark, or dark on light."
    ),
]
OutputPath = Annotated[
    Path,
    AfterValidator(known_format),
    Field(description="The file to write: .csv or .parquet. It is replaced if it exists."),
]
Strict = Annotated[
    bool, Field(description="Stop at a file of the folder that can't be read, instead of naming it and leaving it out.")
]
# How many of the files that were left out the log names.
N_NAMED = 20
Probability = Annotated[
    float, Field(ge=0, le=1, description="The probability below which a person should be asked, in 0–1.")
]


class Scoring(Record):
    """What a scoring run did.

    Attributes:
        n_images: How many images were scored.
        n_ask: How many of them a person should look at.
        n_left_out: How many files of a folder were left out, because they can't be read as PNG.
        output: The file that was written, with the columns image, label, probability and ask_a_person.
        version: The champion's version.
        drift: A sentence for each way in which the images differ from the training data. Empty if they don't.
    """

    n_images: int
    n_ask: int
    n_left_out: int = 0
    output: Path
    version: int
    drift: tuple[str, ...]

    @property
    def left_out(self) -> str:
        """How many files were left out, as the end of a sentence. Empty if there are none."""
        return f"; {plural(self.n_left_out, 'file')} left out, see the log" if self.n_left_out else ""

    def __str__(self) -> str:
        """The record as text for a terminal."""
        drift = "".join(f"\n  unlike the training data: {sentence}" for sentence in self.drift)
        return f"""
  version {self.version} scored {self.n_images:,} images; ask a person about {self.n_ask:,}{self.left_out}{drift}

  {self.output}"""

    def markdown(self) -> str:
        """The record as Markdown for the run's page in the UI."""
        lines = [
            f"Version {self.version} scored **{self.n_images:,} images**; a person should look at {self.n_ask:,}"
            f"{self.left_out}.",
            *(f"⚠ Unlike the training data: {sentence}." for sentence in self.drift),
            f"Labels and probabilities: {escape_markdown(str(self.output))}",
        ]
        return "\n\n".join(lines)


class Champion(NamedTuple):
    """The champion, loaded and checked.

    Attributes:
        version: Its version in the registry.
        network: The model. It takes images as `artifacts.dataset.scale` makes them, and returns probabilities of shape
            ``(n, 10)``.
        profile: What is usual of its training data. None for a version that was registered without a profile.
    """

    version: Version
    network: "keras.Model"
    profile: Profile | None


def score(images: npt.NDArray[Any] | Iterable[npt.NDArray[Any]], ask_below: float = 0.9) -> "Iterator[pd.DataFrame]":
    """Score images with the registry's champion, in code.

    Args:
        images: An array of shape ``(n, height, width)``, or an iterable of such arrays: integers in 0–255 or floats in
            0–1. They are first brought into MNIST's form, see `tasks.data.images.prepare`.
        ask_below: The probability below which a person should be asked, in 0–1.

    Yields:
        A table for at most 1,000 images, with the columns label, probability and ask_a_person, see `classify`.

    Raises:
        DataError: Raised if the images have another shape or range.
        RegistryError: Raised if there is no champion.
        ModelError: Raised if the champion doesn't load, or isn't the model that was registered.
    """
    champion = load_champion(version_by_alias(connect(), CHAMPION))
    for array in [images] if isinstance(images, np.ndarray) else images:
        if array.ndim != 3 or 0 in array.shape[1:]:
            raise DataError(f"the images have the shape {array.shape}; expected (n, height, width)")
        for start in range(0, len(array), BATCH):
            prepared, _ = prepare(as_bytes(array[start : start + BATCH], "the array"))
            yield classify(champion.network, prepared, ask_below)


@task(name="score", cache_policy=NO_CACHE)
def score_images(
    version: Version | None, images: Path, output: Path, ask_below: float = 0.9, strict: bool = False
) -> Scoring:
    """Score the images. The output appears only when it is complete.

    Args:
        version: The champion, if there is one.
        images: The file or folder to read, see `tasks.data.images.read_batches`.
        output: The ``.csv`` or ``.parquet`` file to write.
        ask_below: The probability below which a person should be asked, in 0–1.
        strict: Whether a file of a folder that can't be read is an error. Otherwise it is named and left out.

    Raises:
        DataError: Raised if the images can't be read, or the output can't be written.
        RegistryError: Raised if there is no champion.
        ModelError: Raised if the champion doesn't load, or isn't the model that was registered.
    """
    images, output = (path.expanduser().absolute() for path in (images, output))
    champion = load_champion(version)
    drift = Drift()
    n_images = n_ask = 0
    left_out: list[str] = []
    with writing(output) as write:
        for batch in read_batches(images, None if strict else left_out):
            scored = classify(champion.network, batch.images, ask_below)
            scored.insert(0, "image", batch.names)
            write(scored)
            drift.add(batch.images, batch.n_inverted, scored["probability"].to_numpy())
            n_images += len(scored)
            n_ask += int(scored["ask_a_person"].sum())
        if n_images == 0:
            reason = f" ({left_out[0]})" if left_out else ""
            raise DataError(f"{images} has no images{reason}; name a file or folder that has some")
    scoring = Scoring(
        n_images=n_images,
        n_ask=n_ask,
        n_left_out=len(left_out),
        output=output,
        version=champion.version.version,
        drift=drift.sentences(champion.profile),
    )
    for line in left_out[:N_NAMED]:
        run_logger().warning(f"left out: {line}")
    if len(left_out) > N_NAMED:
        run_logger().warning(f"left out: {len(left_out) - N_NAMED:,} more files")
    for sentence in scoring.drift:
        run_logger().warning(f"unlike the training data: {sentence}")
    return scoring


def load_champion(version: Version | None) -> Champion:
    """Load the champion, and check that its weights are those that were registered.

    Raises:
        RegistryError: Raised if there is no champion.
        ModelError: Raised if the champion doesn't load, or its weights have another digest.
    """
    if version is None:
        raise RegistryError(f"{REGISTERED_MODEL} has no champion; `make train` makes one, or `make promote VERSION=…`")
    client = connect()
    name = f"version {version.version} of {REGISTERED_MODEL}"
    try:
        network = load_model(version.model)
    except (OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{name} can't be loaded ({reason}); `make rollback` goes back to the champion before"
        ) from error
    if digest_weights(network) != version.model.weights_digest:
        raise ModelError(
            f"the weights of {name} aren't those that were registered; `make rollback` goes back to the champion before"
        )
    if PROFILE not in [file.path for file in client.list_artifacts(version.mlflow_run_id)]:
        run_logger().warning(f"{name} has no {PROFILE}, so the images aren't compared with its training data")
        return Champion(version, network, None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(client.download_artifacts(version.mlflow_run_id, PROFILE, folder))
        return Champion(version, network, Profile.model_validate_json(file.read_bytes()))


def classify(network: "keras.Model", images: Pixels, ask_below: float) -> "pd.DataFrame":
    """Classify images of shape ``(n, 28, 28)``, uint8 in 0–255.

    Returns:
        A table with the columns label (int64 in 0–9), probability (of that label, float32 in 0–1) and ask_a_person
        (bool: the probability is below `ask_below`). Probabilities are calibrated: of the labels with 0.9, about nine
        in ten are right.
    """
    import pandas as pd

    probabilities = np.asarray(network.predict_on_batch(scale(images)))
    probability = probabilities.max(axis=1)
    return pd.DataFrame(
        {"label": probabilities.argmax(axis=1), "probability": probability, "ask_a_person": probability < ask_below}
    )


@contextmanager
def writing(output: Path) -> "Iterator[Callable[[pd.DataFrame], None]]":
    """Write a table under a temporary name, and rename it when the block ends well. Otherwise no file is left.

    Yields:
        A function that appends rows. The first rows decide whether images have numbers or strings as names.

    Raises:
        DataError: Raised if the file can't be written.
    """
    import pyarrow as pa
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    stack = ExitStack()
    writers: list[Any] = []

    def write(rows: "pd.DataFrame") -> None:
        if output.suffix == ".csv" and rows["image"].dtype != np.int64:
            # A spreadsheet would run a name that starts like this as a formula.
            rows = rows.assign(image=rows["image"].str.replace(r"^(?=[=+\-@\t\r\n])", "'", regex=True))
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        if not writers:
            writer = ParquetWriter if output.suffix == ".parquet" else CSVWriter
            writers.append(stack.enter_context(writer(str(temporary), table.schema)))
        writers[0].write_table(table)

    try:
        # A missing folder is noticed before any work is done.
        with tempfile.TemporaryDirectory(prefix=".scoring-", dir=output.parent) as folder:
            temporary = Path(folder) / output.name
            with stack:
                yield write
            temporary.replace(output)
    except OSError as error:
        raise DataError(f"{output} can't be written ({error.strerror or error}); name another --output") from error
