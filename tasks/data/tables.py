"""Tables: describe a split image by image, for the expectation suite."""

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from artifacts.dataset import Images, Split
from artifacts.records.data import N_CLASSES

if TYPE_CHECKING:
    import pandas as pd


# How many images are described at once.
BLOCK = 20_000
# MNIST's mean training image of each class, 0–9, reduced to 7×7: two hexadecimal digits per pixel.
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


def flatten(images: Images) -> Images:
    """The images as rows, shape ``(n, pixels)``."""
    return np.ascontiguousarray(images.reshape(len(images), math.prod(images.shape[1:])))


def class_means(train: Split) -> Images:
    """The mean training image of each class, shape ``(10, pixels)``. NaN for a class without images."""
    n = min(len(train.x), len(train.y))  # the suite reports different numbers of images and labels
    pixels, labels = flatten(train.x[:n]), train.y[:n]
    means = np.full((N_CLASSES, pixels.shape[1]), np.nan, np.float32)
    for label in range(N_CLASSES):
        members = pixels[labels == label]
        members = members[np.isfinite(members).all(axis=1)]
        if len(members):
            means[label] = members.mean(axis=0, dtype=np.float64)
    return means


def mnist_means() -> Images:
    """MNIST's own class means, shape ``(10, 49)``, in the form of `shrink`."""
    return np.array([list(bytes.fromhex(mean)) for mean in MNIST_MEANS], np.float32) / np.float32(255)


def predict_by_class_mean(pixels: Images, means: Images) -> npt.NDArray[np.integer[Any]]:
    """The label of the nearest class mean for each row of `pixels`. −1 if the sizes differ.

    As a model this is poor, but its accuracy of 81 % on MNIST falls to 10 % if the labels are shuffled.
    """
    if pixels.shape[1] != means.shape[1]:
        return np.full(len(pixels), -1)
    with np.errstate(invalid="ignore", over="ignore"):  # the suite reports pixels that are huge or not finite
        # |p − m|² without |p|², which is the same for every class.
        distances = (means**2).sum(axis=1) - pixels @ (2 * means.T)
    nearest: npt.NDArray[np.integer[Any]] = np.nan_to_num(distances, nan=np.inf).argmin(axis=1)
    return nearest


def shrink(images: Images) -> Images:
    """The images as rows, shape ``(n, pixels)``: reduced to 7×7 pixels if they have 28×28, else as they are."""
    if images.shape[1:] != (28, 28, 1):
        return flatten(images)
    shrunk: Images = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4))
    return flatten(shrunk)


def tabulate_images(split: Split, dtype: np.dtype[Any], means: Images) -> "pd.DataFrame":
    """Make the table of a split that the suite checks, one row per image.

    Args:
        split: The images and labels, as train and evaluate use them.
        dtype: Type of the raw pixels.
        means: The class means of the training split.

    Returns:
        A row for each image or label, whichever are more. An image without a label, or a label without an image, has
        nulls. The pixel figures of an image that isn't finite are null, so that only `n_not_finite` reports it.
    """
    import pandas as pd

    x, y = split
    # In blocks, because computing on all pixels at once takes several times their memory.
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
    """Make the columns of `tabulate_images` that describe single images."""
    import pandas as pd

    pixels = flatten(x)
    border = flatten(np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1))
    height, width, channels = (*x.shape[1:], 0)[:3]  # the axis of channels may be missing
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
    """Make the table of a split's classes, one row per class. The row's index is the label."""
    import pandas as pd

    count = images["label"].value_counts().reindex(range(N_CLASSES), fill_value=0)
    return pd.DataFrame({"count": count, "share": count / images["label"].count()}).rename_axis(None)
