"""Bad input stops before training, with one line that names the culprit and what to do; nothing of it stays behind.

Here: files that aren't what they should be, data that aren't MNIST, parameters that make no sense. What the suite says
of single spoilt pixels and labels is in test_validate.py, what scoring says of other people's images in test_images.py.
"""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_dtypes, array_shapes
from hypothesis.extra.numpy import arrays as any_array
from pydantic import TypeAdapter
from pydantic import ValidationError as ParameterError

from artifacts.errors import DataError, MnistError
from artifacts.settings import CHECKOUT
from flows.promote import Reason
from tasks.data import files, sources
from tasks.data.sources import IDX_FILES
from tasks.data.tables import MNIST_MEANS, shrink
from tasks.gate import GateParameters
from tasks.ingest import IngestParameters, digest_source, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.operations.gc import GcParameters
from tasks.operations.score import OutputPath, Probability
from tasks.validate import ExpectationError, ValidateParameters, validate_data
from tests.conftest import TINY

X, Y = IDX_FILES["x_train"], IDX_FILES["y_train"]


def write_npz(path, members, compression=zipfile.ZIP_STORED):
    """Write a zip of arrays, or of bytes as they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text, body=b"\0"):
    """An .npy with a header of one's own."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + body


def shaped(shape, descr="|u1"):
    return header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder, arrays, suffix=""):
    folder.mkdir()
    for name, file in IDX_FILES.items():
        content = idx(arrays[name])
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


# How a good .npz is spoilt → part of what is said. A function takes the file; a dictionary replaces arrays, or bytes
# of their members.
NPZ = {
    "missing": (lambda f: f.unlink(), "can't be read: No such file or directory; check the name"),
    "empty": (lambda f: f.write_bytes(b""), "damaged or of another kind: File is not a zip file; get the file again"),
    "cut short": (lambda f: f.write_bytes(f.read_bytes()[:5000]), "File is not a zip file"),
    "its end only": (lambda f: f.write_bytes(f.read_bytes()[5000:]), "damaged or of another kind"),
    "noise": (lambda f: f.write_bytes(b"x" * 5000), "File is not a zip file"),
    "a flipped bit": (lambda f: flip(f, 40_000), "Bad CRC-32 for file 'x_train.npy'"),
    "a pickle": (lambda f: f.write_bytes(pickle.dumps({"x_train": 1})), "File is not a zip file"),
    "a bare array": (lambda f: f.write_bytes(npy(np.zeros(3))), "File is not a zip file"),
    "a password": (lambda f: patch(f, 6, 8, b"\1"), "is encrypted, password required"),
    "an unknown compression": (lambda f: patch(f, 8, 10, b"\x61"), "compression method is not supported"),
    "damaged deflate": (lambda f: compressed(f, zipfile.ZIP_DEFLATED), "damaged or of another kind"),
    "damaged bzip2": (lambda f: compressed(f, zipfile.ZIP_BZIP2), "damaged or of another kind"),
    "damaged lzma": (lambda f: compressed(f, zipfile.ZIP_LZMA), "damaged or of another kind"),
    "no arrays": (lambda f: write_npz(f, {}), "lacks the arrays x_test, x_train, y_test, y_train; add them"),
    "one array": (lambda f: write_npz(f, {"x_train": np.zeros(3)}), "lacks the arrays x_test, y_test, y_train"),
    "a folder of this name": (lambda f: (f.unlink(), f.mkdir()), "the folder .* lacks train-images-idx3-ubyte"),
    "a pipe": (lambda f: (f.unlink(), os.mkfifo(f)), "is no regular file; copy"),
    "a device": (lambda f: link(f, "/dev/zero"), "is no regular file; copy"),
    "a loop of links": (lambda f: link(f, f), "can't be read: Too many levels of symbolic links"),
    "a link to nothing": (lambda f: link(f, "nothing"), "can't be read: No such file"),
    "a terabyte": (lambda f: os.truncate(f, 2**40), "has 1,099,511,627,776 bytes; at most"),
    "a member that unpacks to too much": (
        lambda f: write_npz(f, {"junk": bytes(files.MAX_BYTES + 1)}, zipfile.ZIP_DEFLATED),
        "unpacks to .* bytes; at most",
    ),
    "pickled objects": (
        {"y_test": np.array([7, {}] * 50, object)},
        "y_test .* pickled objects, which are never loaded",
    ),
    "a pickled object in a field": ({"y_test": np.zeros(2, [("a", "O")])}, "y_test .* pickled objects"),
    "no header": ({"x_train": b"hello"}, "no header of an array"),
    "an empty member": ({"x_train": b""}, "no header of an array"),
    "a version from the future": ({"x_train": b"\x93NUMPY\x09\x09"}, "no header of an array"),
    "a header of brackets": ({"x_train": header("(" * 9000)}, "no header of an array"),
    "a header of spaces": ({"x_train": header(" " * 60_000)}, "no header of an array .*is large"),
    "a header of other keys": ({"x_train": header("{1: 2, 'shape': (1,)}")}, "no header of an array"),
    "a header with an empty type": ({"x_train": header("{'descr': (), 'fortran_order': 0, 'shape': ()}")}, "no header"),
    "a shape of truths": ({"x_train": shaped("(True, True, True)")}, "damaged or of another kind"),
    "a negative shape": ({"x_train": shaped("(-1, 28, 28)")}, "claims -784 bytes .* and holds 1; get the file again"),
    "a shape of petabytes": (
        {"x_train": shaped("(10000000000000, 28, 28)")},
        "x_train .* claims 7,840,000,000,000,000",
    ),
    "a shape beyond 64 bits": ({"x_train": shaped("(4294967296, 4294967296, 28)")}, "x_train .* claims 516,508,834,"),
    "a type of gigabytes": ({"x_train": shaped("(1, 1, 2)", "|S999999999")}, "x_train .* claims 1,999,999,998 bytes"),
    "a count too small": ({"y_train": shaped("(0,)")}, "y_train .* claims 0 bytes .* and holds 1"),
    "flat images": ({"x_train": np.zeros((200, 784), np.uint8)}, r"x_train .* shape \(200, 784\); make it \(n, height"),
    "images in colour": ({"x_test": np.zeros((100, 28, 28, 3), np.uint8)}, r"x_test .* shape \(100, 28, 28, 3\)"),
    "images without pixels": ({"x_test": np.zeros((100, 28, 0), np.uint8)}, r"x_test .* shape \(100, 28, 0\)"),
    "labels in a column": ({"y_test": np.zeros((100, 1), np.uint8)}, r"y_test .* shape \(100, 1\); make it \(n,\)"),
    "one-hot labels": ({"y_test": np.eye(10)}, r"y_test .* shape \(10, 10\)"),
    "text": ({"y_test": np.array(["7"] * 100)}, "y_test .* dtype <U1; save it as uint8"),
    "truth values": ({"x_test": np.zeros((100, 28, 28), bool)}, "x_test .* dtype bool"),
    "complex numbers": ({"x_test": np.zeros((100, 28, 28), complex)}, "x_test .* dtype complex128"),
    "dates": ({"y_test": np.zeros(100, "datetime64[s]")}, r"y_test .* dtype datetime64\[s\]"),
    "a record": ({"y_test": np.zeros(100, [("a", "u1")])}, "y_test .* dtype "),
    "too many labels": (
        {"y_test": np.zeros(sources.MAX_IMAGES + 1, np.uint8)},
        "y_test .* give it at most 600,000 images",
    ),
    "an image too large": ({"x_test": np.zeros((1, 1025, 1024), np.uint8)}, "x_test .* of at most 1,048,576 pixels"),
}


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 255
    file.write_bytes(content)


def patch(file, local, central, byte):
    """Set a byte of the first member's two headers."""
    content = bytearray(file.read_bytes())
    content[local : local + 1] = byte
    start = content.find(b"PK\1\2")
    content[start + central : start + central + 1] = byte
    file.write_bytes(content)


def compressed(file, compression):
    with np.load(file) as npz:
        write_npz(file.with_name("c"), dict(npz), compression)
    file.with_name("c").replace(file)
    for position in range(2000, 2040):
        flip(file, position)


def link(file, target):
    file.unlink()
    file.symlink_to(target)


# How the file of the training images among four good IDX files is spoilt → part of what is said.
IDX = {
    "missing": (lambda f: f.unlink(), f"the folder .* lacks {X} .*; add them"),
    "empty": (lambda f: f.write_bytes(b""), "isn't an IDX file of unsigned bytes: it starts with nothing"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), f"{X} is no regular file"),
    "a pipe": (lambda f: (f.unlink(), os.mkfifo(f)), f"{X} is no regular file"),
    "a loop of links": (lambda f: link(f, f), f"lacks {X}"),
    "a byte short": (lambda f: f.write_bytes(f.read_bytes()[:-1]), "claims 156,800 bytes .* and holds 156,799; get"),
    "a byte more": (lambda f: f.write_bytes(f.read_bytes() + b"0"), "claims 156,800 bytes .* and holds more; get"),
    "half a header": (lambda f: f.write_bytes(f.read_bytes()[:6]), r"x_train in .* has the shape \(0, 0, 0\)"),
    "signed bytes": (lambda f: f.write_bytes(b"\0\0\x09\3" + f.read_bytes()[4:]), f"{X} isn't .* with 00000903"),
    "floats": (lambda f: f.write_bytes(b"\0\0\x0d\3" + f.read_bytes()[4:]), f"{X} isn't .* with 00000d03"),
    "four dimensions": (lambda f: f.write_bytes(b"\0\0\x08\4" + f.read_bytes()[4:]), f"{X} isn't .* with 00000804"),
    "swapped bytes": (lambda f: f.write_bytes(b"\3\x08\0\0" + f.read_bytes()[4:]), f"{X} isn't .* with 03080000"),
    "one image fewer": (lambda f: f.write_bytes(count(f, 199)), "claims 156,016 bytes .* and holds more"),
    "one image more": (lambda f: f.write_bytes(count(f, 201)), "claims 157,584 bytes .* and holds 156,800"),
    "a header of exabytes": (lambda f: f.write_bytes(b"\0\0\x08\3" + b"\xff" * 12), "claims 79,228,162,458,924,105,"),
    "the labels": (lambda f: shutil.copy(f.with_name(Y), f), r"x_train in .* has the shape \(200,\); make it"),
}


def count(file, n):
    content = file.read_bytes()
    return content[:4] + n.to_bytes(4, "big") + content[8:]


# The same for gzipped ones.
GZ = {
    "not gzipped": (lambda f: f.write_bytes(b"x" * 50), "Not a gzipped file"),
    "its first bytes": (lambda f: f.write_bytes(f.read_bytes()[:5]), "ended before the end-of-stream marker"),
    "half": (lambda f: f.write_bytes(f.read_bytes()[:9000]), "ended before the end-of-stream marker"),
    "no checksum": (lambda f: f.write_bytes(f.read_bytes()[:-8]), "ended before the end-of-stream marker"),
    "a flipped bit": (lambda f: flip(f, 500), "damaged or of another kind"),
    "another checksum": (lambda f: flip(f, -6), "damaged or of another kind: CRC check failed"),
    "another length": (lambda f: flip(f, -2), "damaged or of another kind: Incorrect length"),
    "something behind it": (lambda f: f.write_bytes(f.read_bytes() + b"junk"), "damaged or of another kind"),
    "twice": (lambda f: f.write_bytes(f.read_bytes() * 2), "claims 156,800 bytes .* and holds more"),
    "empty inside": (lambda f: f.write_bytes(gzip.compress(b"")), "it starts with nothing"),
}
FILES = [
    pytest.param(kind, *case, id=f"{kind}: {name}")
    for kind, cases in {"npz": NPZ, "idx": IDX, "idx.gz": GZ}.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize(("kind", "spoil", "said"), FILES)
def test_a_bad_file_is_refused(home, tmp_path, mnist, kind, spoil, said):
    if kind == "npz":
        path = write_npz(tmp_path / "data.npz", mnist)
        write_npz(path, mnist | spoil) if isinstance(spoil, dict) else spoil(path)
    else:
        path = write_idx(tmp_path / "data", mnist, suffix := kind.removeprefix("idx"))
        spoil(path / f"{X}{suffix}")
    refused(path, said, tmp_path)
    assert not list(home.rglob("*"))


def refused(path, said, *named):
    """The source is refused in one line that says what, where and what to do."""
    with pytest.raises(DataError, match=said) as caught:
        ingest_data.fn(IngestParameters(source="path", path=path))
    line = str(caught.value)
    assert line.isprintable()
    assert "; " in line
    assert all(str(name) in line for name in named)


@pytest.mark.parametrize(
    ("path", "said"),
    {
        "": "the folder . lacks",
        "a\nb\x1b[31m\u202e": r"a\\nb\\x1b\[31m\\u202e can't be read",
        "a\0b": r"a\\x00b .* null byte",
        "~no such user/x": "~no such user/x can't be read: No such file",
        "a" * 300: "aaa can't be read: File name too long",
        "/etc/passwd/x": "can't be read: Not a directory",
        "/dev/null": "is no regular file",
        "/proc/self/mem": "is damaged or of another kind",
    }.items(),
)
def test_a_bad_path_is_refused(home, path, said):
    refused(Path(path), said)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.unlink(), "can't be read: No such file"),
        (lambda f: f.write_bytes(b"x" * 500), "is damaged or of another kind"),
        (lambda f: write_npz(f, {}), "is damaged or of another kind"),
    ],
    ids=["missing", "noise", "no arrays"],
)
def test_a_damaged_package_is_refused(home, tmp_path, monkeypatch, spoil, said):
    spoil(shutil.copy(sources.package_file(), tmp_path / "package.zip") and tmp_path / "package.zip")
    monkeypatch.setattr(sources, "package_file", lambda: tmp_path / "package.zip")
    with pytest.raises(DataError, match=f"package.zip {said}"):
        ingest_data.fn(IngestParameters(source="package"))


def turned(turn):
    return lambda a: {name: turn(array) if name[0] == "x" else array for name, array in a.items()}


def relabelled(label):
    return lambda a: a | {name: label(a[name]) for name in ("y_train", "y_test")}


def drawn(a):
    """Ten shapes, drawn light on dark in the middle, each in its own place: centred, balanced, separable, no digits."""
    for name in ("train", "test"):
        rng = np.random.default_rng(len(name))
        y = a[f"y_{name}"]
        x = np.zeros_like(a[f"x_{name}"])
        for image, label in zip(x, y, strict=True):
            top, left = 5 + 9 * (label // 5), 3 + 4 * (label % 5)
            image[top : top + 9, left : left + 6] = rng.integers(190, 256, (9, 6))
            image[14, 14:18] = rng.integers(1, 256, 4)
        a |= {f"x_{name}": x}
    return a


MEAN, DTYPE, OWN = "column pixel_mean", "column dtype", "column agrees_with_mnist"
# Sound arrays that aren't MNIST → part of what the suite says of them, by its defaults but for the sample's size.
DATA = {
    "transposed": (turned(lambda x: x.transpose(0, 2, 1)), OWN),
    "mirrored": (turned(lambda x: x[:, :, ::-1]), OWN),
    "upside down": (turned(lambda x: x[:, ::-1, ::-1]), OWN),
    "4 and 9 exchanged": (relabelled(lambda y: np.array([0, 1, 2, 3, 9, 5, 6, 7, 8, 4], np.uint8)[y]), OWN),
    "counted from the other end": (relabelled(lambda y: 9 - y), OWN),
    "drawn shapes": (drawn, OWN),
    "blank": (turned(np.zeros_like), "column pixel_max"),
    "all the same image": (turned(lambda x: np.repeat(x[:1], len(x), axis=0)), "column pixel_mean|is_duplicate|share"),
    "of one class": (relabelled(np.zeros_like), "train classes, column count"),
    "no number for a label": (relabelled(lambda y: np.where(y == 3, np.nan, y)), "column label"),
    "no images at all": (lambda a: {name: array[:0] for name, array in a.items()}, "The split has 200 images"),
    "0–255 as floats": (turned(lambda x: x.astype(np.float32)), f"{DTYPE}.*stored as uint8"),
    "big-endian halves": (turned(lambda x: x.astype(">f2")), DTYPE),
    "labels of another split": (lambda a: a | {"y_test": a["y_train"]}, "test images, expect_table_row_count"),
    "train as test": (lambda a: a | {"x_test": a["x_train"][:100], "y_test": a["y_train"][:100]}, "column in_train"),
}


@pytest.mark.expensive
@pytest.mark.parametrize(("spoil", "said"), DATA.values(), ids=DATA)
def test_other_data_are_stopped(home, tmp_path, arrays, spoil, said):
    path = write_npz(tmp_path / "data.npz", spoil(arrays))
    dataset = ingest_data.fn(IngestParameters(source="path", path=path))
    with pytest.raises(ExpectationError, match=f"{said}.*Correct the data or") as caught:
        validate_data.fn(dataset, TINY)
    assert str(caught.value).isprintable()


@pytest.mark.expensive
def test_the_means_that_labels_are_held_against_are_mnists_own():
    arrays = sources.read_package(sources.package_file())
    images = shrink(arrays["x_train"][..., np.newaxis].astype(np.float32))
    means = [images[arrays["y_train"] == label].mean(axis=0, dtype=np.float64) for label in range(10)]
    assert [bytes(np.rint(mean).astype(np.uint8)).hex() for mean in means] == list(MNIST_MEANS)


MODELS = {
    "ingest": IngestParameters,
    "validate": ValidateParameters,
    "train": TrainParameters,
    "gate": GateParameters,
    "keep": GcParameters,
}
# Parameters that no run accepts.
PARAMETERS = [
    ("ingest", {"source": "path"}),
    ("ingest", {"path": "x.npz"}),
    ("ingest", {"source": "package", "path": "x.npz"}),
    ("ingest", {"source": "keras", "path": "x.npz"}),
    ("ingest", {"source": "ftp"}),
    ("ingest", {"source": "path", "path": 5}),
    ("ingest", {"source": "path", "path": Path("a\udcffb")}),
    ("validate", {"pixel_mean_min": 0.2, "pixel_mean_max": 0.1}),
    ("validate", {"class_share_min": 0.1, "class_share_max": 0.05}),
    ("validate", {"class_share_min": 0.11}),
    ("validate", {"class_share_min": 0, "class_share_max": 0.09}),
    ("validate", {"n_train": 0}),
    ("validate", {"n_test": 10**30}),
    ("validate", {"n_train": 1.5}),
    ("validate", {"height": -28}),
    ("validate", {"height": 16, "width": 16}),
    ("validate", {"width": 27}),
    ("validate", {"dtype": "uint4"}),
    ("validate", {"agreement_min": float("nan")}),
    ("validate", {"leakage_max": 2}),
    ("train", {"epochs": 0}),
    ("train", {"epochs": 10**30}),
    ("train", {"epochs": "many"}),
    ("train", {"epochs": None}),
    ("train", {"batch_size": 0}),
    ("train", {"learning_rate": 0}),
    ("train", {"learning_rate": float("inf")}),
    ("train", {"learning_rate": float("nan")}),
    ("train", {"label_smoothing": 1}),
    ("train", {"validation_share": 1}),
    ("train", {"precision": "float8"}),
    ("train", {"network": "resnet"}),
    ("train", {"network": "os.system"}),
    ("train", {"seed": -1}),
    ("train", {"seed": 2**32}),
    ("gate", {"alpha": 0}),
    ("gate", {"alpha": 0.5}),
    ("gate", {"margin": -0.1}),
    ("gate", {"promote_if": "worse"}),
    ("gate", {"maximum_latency": float("inf")}),
    ("gate", {"maximum_size": 10**30}),
    ("gate", {"hold_for_approval": "perhaps"}),
    ("keep", {"days": float("inf")}),
    ("keep", {"days": -1}),
    ("keep", {"runs": 0}),
    ("keep", {"wait_minutes": 1e300}),
]


@pytest.mark.parametrize(("name", "values"), PARAMETERS, ids=lambda value: str(value))
def test_bad_parameters_are_refused(name, values):
    with pytest.raises(ParameterError) as caught:
        MODELS[name](**values)
    (error,) = caught.value.errors()
    assert set(error["loc"]) <= values.keys() | {"literal", "path"}
    assert "\n" not in error["msg"]


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_parameter_is_refused(name):
    with pytest.raises(ParameterError, match="epohcs"):
        MODELS[name](epohcs=1)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Reason, "  a  "),
        (Reason, "fine\n2026-01-01 champion 9"),
        (Reason, "\x1b[2Jall gone"),
        (Reason, "x" * 1001),
        (Probability, float("nan")),
        (Probability, 1.1),
        (OutputPath, "labels.xlsx"),
        (OutputPath, ""),
    ],
)
def test_other_flows_refuse_bad_parameters_too(kind, value):
    with pytest.raises(ParameterError):
        TypeAdapter(kind).validate_python(value)


LIMITED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def survives(path):
    """The source is read, or refused in one line; and its digest is, too."""
    for read in (ingest_data.fn, digest_source):
        line = ""
        try:
            read(IngestParameters(source="path", path=path))
        except MnistError as error:
            line = str(error)
        assert line.isprintable()


@LIMITED
@given(data=st.data())
@pytest.mark.expensive
def test_an_npz_with_any_bytes_changed_is_read_or_refused(home, tmp_path, sample_npz, data):
    content = bytearray(sample_npz.read_bytes())
    # The directory at the end and the headers decide most.
    places = st.one_of(st.integers(0, 300), st.integers(-400, -1), st.integers(0, len(content) - 1))
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = byte
    path = tmp_path / "data.npz"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    survives(path)


@LIMITED
@given(text=st.one_of(st.text(max_size=200), st.text("{}()[],:'0123456789descrfotan_hpu|<> ", max_size=200)))
@pytest.mark.expensive
def test_an_array_with_any_header_is_read_or_refused(home, tmp_path, mnist, text):
    content = text.encode()
    survives(
        write_npz(
            tmp_path / "data.npz", mnist | {"y_test": b"\x93NUMPY\1\0" + struct.pack("<H", len(content)) + content}
        )
    )


@LIMITED
@given(array=any_array(array_dtypes(), array_shapes(min_dims=0, max_dims=4, max_side=4)))
@pytest.mark.expensive
def test_an_array_of_any_type_and_shape_is_read_or_refused(home, tmp_path, mnist, array):
    survives(write_npz(tmp_path / "data.npz", mnist | {"x_train": array}))


@LIMITED
@given(head=st.binary(max_size=20), zipped=st.booleans(), tail=st.binary(max_size=40))
@pytest.mark.expensive
def test_idx_files_of_any_bytes_are_read_or_refused(home, tmp_path, mnist, head, zipped, tail):
    shutil.rmtree(tmp_path / "idx", ignore_errors=True)
    folder = write_idx(tmp_path / "idx", mnist, ".gz" if zipped else "")
    content = b"\0\0\x08" + head
    (folder / f"{Y}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) + tail if zipped else content + tail)
    survives(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@LIMITED
@given(data=st.data(), name=st.sampled_from(list(MODELS)))
def test_what_parameters_accept_can_be_stored_and_read_back(data, name):
    """Whatever a parameter accepts goes through JSON of 64-bit numbers, as Prefect's API and the cache key need it."""
    model = MODELS[name]
    fields = data.draw(st.dictionaries(st.sampled_from(list(model.model_fields)), json_values, max_size=2))
    try:
        parameters = model(**fields)
    except ParameterError:
        return
    stored = json.loads(parameters.model_dump_json())
    assert model(**stored) == parameters
    assert all(abs(value) < 2**63 for value in stored.values() if isinstance(value, int))


def peak_memory(path):
    """Ingest a path in a process of its own: the most memory it ever had, in bytes, less that of the start."""
    code = (
        "import resource, sys; from pathlib import Path; from tasks.ingest import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "try:\n    ingest_data.fn(IngestParameters(source='path', path=Path(sys.argv[1])))\n"
        "except DataError as error:\n    print(peak() - before, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    size, _, said = done.stdout.partition(" ")
    return int(size), said


def npz_bomb(folder, arrays):
    """9 MB that unpack to 8 GB, and say so."""
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x_train.npy", npy(np.zeros((100_000, 28, 28), np.uint8)))
    content = bytearray((folder / "bomb.npz").read_bytes())
    start = content.find(b"PK\1\2")
    content[start + 24 : start + 28] = struct.pack("<I", 2**32 - 2)
    (folder / "bomb.npz").write_bytes(content)
    return folder / "bomb.npz"


def npz_lie(folder, arrays):
    """A small member that claims 20 GB in its header, which an allocation would have to hold."""
    return write_npz(folder / "lie.npz", arrays | {"x_train": shaped("(25_000_000, 28, 28)".replace("_", ""))})


def directory_bomb(folder, arrays, n=800_000):
    """37 MB of directory, of which Python would make 800,000 objects."""
    directory = n * (b"PK\1\2" + bytes(42))
    end = (
        b"PK\5\6" + bytes(4) + 2 * struct.pack("<H", min(n, 65_535)) + struct.pack("<II", len(directory), 0) + bytes(2)
    )
    (folder / "directory.npz").write_bytes(directory + end)
    return folder / "directory.npz"


def gz_bomb(folder, arrays):
    """A file of 200 images, and 300 MB behind them."""
    write_idx(folder / "gz", arrays, ".gz")
    with gzip.open(folder / "gz" / f"{X}.gz", "wb", compresslevel=1) as file:
        file.write(idx(arrays["x_train"]))
        for _ in range(300):
            file.write(bytes(2**20))
    return folder / "gz"


@pytest.mark.expensive
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (npz_bomb, "unpacks to"),
        (npz_lie, "x_train .* claims 19,600,000,000"),
        (directory_bomb, "has too many entries"),
        (gz_bomb, "holds more"),
    ],
)
def test_a_decompression_bomb_takes_no_memory(home, tmp_path, mnist, make, said):
    peak, line = peak_memory(make(tmp_path, mnist))
    assert re.search(said, line)
    assert peak < 100e6
