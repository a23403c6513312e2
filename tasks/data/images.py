"""Images: read other people's images in batches, and bring them into MNIST's form."""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from artifacts.errors import DataError
from tasks.data.files import check_directory, read_npy_header, reading, size_of

Pixels = npt.NDArray[np.uint8]
SIDE = 28
BATCH = 1000
# The largest image, and the most raw images in memory at once.
MAX_BYTES = 64 * 2**20
# Pillow holds a PNG several times over while it is made grey, with four bytes a pixel.
MAX_PNG_PIXELS = 4096**2
BRIGHT = 127


class Batch(NamedTuple):
    """Up to 1,000 images, ready to be scored.

    Attributes:
        names: The file names, or the indices in the file, from 0.
        images: Light on dark, shape ``(n, 28, 28)``, uint8 in 0–255.
        n_inverted: How many of them were dark on light.
    """

    names: list[str] | list[int]
    images: Pixels
    n_inverted: int


def read_batches(path: Path, left_out: list[str] | None = None) -> Iterator[Batch]:
    """Read images in batches, never all at once.

    Args:
        path: An ``.npz``, an IDX file, or a folder of PNGs.
        left_out: Receives a line for each file of a folder that isn't a PNG or can't be read. Without it, the first
            such file is an error.

    Raises:
        DataError: Raised if the path can't be read, is damaged, or has no images.
    """
    if path.is_dir():
        yield from read_folder(path, left_out)
        return
    with reading(path):
        size_of(path)  # a pipe would never end
    first = 0
    for images in read_npz(path) if path.suffix == ".npz" else read_idx(path):
        prepared, n_inverted = prepare(as_bytes(images, str(path)))
        yield Batch(list(range(first, first + len(images))), prepared, n_inverted)
        first += len(images)


def read_folder(folder: Path, left_out: list[str] | None) -> Iterator[Batch]:
    """Read the PNGs of a folder in the order of their names. Subfolders are left out."""
    with reading(folder):
        files = sorted(path for path in folder.iterdir() if path.is_file())
    names, prepared = [], []
    for n, file in enumerate(files, start=1):
        try:
            image = read_png(file)
        except DataError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
        else:
            # A file name may have bytes that aren't UTF-8. CSV and Parquet can't store those.
            names.append(file.name.encode("utf-8", "backslashreplace").decode())
            prepared.append(prepare(image[np.newaxis]))
        if names and (len(names) == BATCH or n == len(files)):
            yield Batch(names, np.concatenate([image for image, _ in prepared]), sum(n for _, n in prepared))
            names, prepared = [], []


def read_png(file: Path) -> Pixels:
    """Read a PNG as grey, shape ``(height, width)``, uint8 in 0–255. Transparent pixels become white.

    Raises:
        DataError: Raised if the file is damaged, no PNG, or too large.
    """
    from PIL import Image

    if file.suffix.lower() != ".png":
        raise DataError(f"{file} is no PNG; save it as one, or take it out of the folder")
    with reading(file), file.open("rb") as stream:
        try:
            image: Image.Image = Image.open(stream, formats=["PNG"])
            if math.prod(image.size) > MAX_PNG_PIXELS:
                raise DataError(f"{file} has {image.width:,}×{image.height:,} pixels; make it smaller")
            if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them instead of scaling them
                return (np.asarray(image) >> 8).astype(np.uint8)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("L"))
        except (Image.DecompressionBombError, SyntaxError) as error:  # what Pillow raises for a broken PNG
            raise DataError(f"{file} can't be read: {error}; save it again, or take it out of the folder") from error


def read_npz(file: Path) -> Iterator[npt.NDArray[Any]]:
    """Read the images of an ``.npz`` as a stream. Nothing is ever unpickled.

    Yields:
        The next images, shape ``(n, height, width)``, in the dtype of the array.

    Raises:
        DataError: Raised if it isn't an ``.npz``, is damaged, or has no array of images.
    """
    with reading(file), file.open("rb") as stream:
        check_directory(stream, file)
    with reading(file), ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        preferred = ["x_test.npy", "images.npy"]
        for name in sorted(names, key=lambda name: preferred.index(name) if name in preferred else len(preferred)):
            with archive.open(name) as member:
                shape, fortran_order, dtype = read_npy_header(member)
                if len(shape) != 3:
                    continue
                if fortran_order or dtype.kind not in "uif":
                    raise DataError(f"{name} in {file} isn't an array of numbers in C order; save it as uint8 in 0–255")
                yield from read_arrays(member, file, shape, dtype)
                return
        raise DataError(f"{file} has no array of the shape (n, height, width); give the images as x_test or images")


def read_idx(file: Path) -> Iterator[Pixels]:
    """Read the images of an IDX file, gzipped or not, as a stream. `tasks.data.files.read_idx` reads the whole file.

    Raises:
        DataError: Raised if it isn't an IDX file, or its size isn't what its header says.
    """
    with reading(file), cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"\0\0\x08\x03":
            raise DataError(
                f"{file} isn't an IDX file of images: it starts with {magic.hex() or 'nothing'}, not 00000803; "
                "name an .npz, an IDX file or a folder of PNGs"
            )
        shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(3))
        yield from read_arrays(stream, file, shape, np.dtype(np.uint8))


def read_arrays(
    stream: IO[bytes], file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """Read raw images from a stream, at most 1,000 and at most 64 MiB at a time.

    Raises:
        DataError: Raised if the images are too large, or the stream has more or fewer than `shape` says.
    """
    n, height, width = shape
    size = height * width * dtype.itemsize
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"the images of {file} have {height:,}×{width:,} pixels; give them another size")
    at_once = min(BATCH, MAX_BYTES // size)
    for start in range(0, n, at_once):
        count = min(at_once, n - start)
        content = stream.read(count * size)
        if len(content) < count * size:
            raise DataError(
                f"{file} claims {n:,} images and holds {start + len(content) // size:,}; get the file again"
            )
        yield np.frombuffer(content, dtype).reshape(count, height, width)
    if stream.read(1):  # reading to the end makes zip and gzip compare their checksums
        raise DataError(f"{file} claims {n:,} images and holds more; get the file again")


def as_bytes(images: npt.NDArray[Any], name: str) -> Pixels:
    """Turn integers in 0–255, or floats in 0–1, into uint8 in 0–255.

    Raises:
        DataError: Raised if the images have another type or range.
    """
    if images.dtype == np.uint8 or images.size == 0:
        return images.astype(np.uint8, copy=False)
    top = 1 if images.dtype.kind == "f" else 255
    low, high = images.min(), images.max()
    if images.dtype.kind not in "uif" or not (low >= 0 and high <= top):
        raise DataError(
            f"the images of {name} are {images.dtype} in {low:g}–{high:g}; give integers in 0–255 or floats in 0–1"
        )
    return np.rint(images * (255 / top)).astype(np.uint8)


def prepare(images: Pixels) -> tuple[Pixels, int]:
    """Bring images into MNIST's form: light on dark, 28×28.

    Args:
        images: Shape ``(n, height, width)``, uint8 in 0–255. If most of an image's border is in the brighter half of
            its range, the border is paper, and the image is inverted.

    Returns:
        The images, shape ``(n, 28, 28)``, and how many of them were dark on light.
    """
    border = np.median(np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1), axis=1)
    middle = (images.min(axis=(1, 2)) + images.max(axis=(1, 2)).astype(np.float64)) / 2
    inverted = np.where(border == middle, border > BRIGHT, border > middle)  # equal if the image has only one shade
    images = images ^ (inverted * np.uint8(255))[:, np.newaxis, np.newaxis]  # 255 - x is x with every bit flipped
    if images.shape[1:] != (SIDE, SIDE):
        images = np.array([fit(image) for image in images], np.uint8).reshape(-1, SIDE, SIDE)
    return images, int(inverted.sum())


def fit(image: Pixels) -> Pixels:
    """Bring one image to 28×28, as http://yann.lecun.com/exdb/mnist describes it for MNIST.

    The digit is scaled to fit into 20×20 and keeps its aspect ratio. Its centre of mass is put into the middle.

    Args:
        image: Light on dark, shape ``(height, width)``, uint8 in 0–255. A pixel that is not brighter than most of the
            border is background. The brightest pixel is ink.

    Returns:
        The image, shape ``(28, 28)``. It is all 0 if there is only background.
    """
    from PIL import Image

    background = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
    ink = np.clip(image - background, 0, None, dtype=np.float32)
    fitted = np.zeros((SIDE, SIDE), np.uint8)
    if not ink.any():
        return fitted
    ink *= 255 / ink.max()
    # Below a tenth of the range, it is noise.
    rows, columns = (np.flatnonzero((ink > 25).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(20 * length / max(ink.shape))) for length in ink.shape)
    digit = np.asarray(Image.fromarray(ink.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (
        int(
            np.clip(
                round(SIDE / 2 - np.average(np.arange(length), weights=digit.sum(axis=axis) + 1e-9)), 0, SIDE - length
            )
        )
        for axis, length in ((1, height), (0, width))
    )
    fitted[top : top + height, left : left + width] = digit
    return fitted
