"""Images of every form, size and kind, made what MNIST's are; and what can't be read, named in one line."""

import gzip
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import DataError
from tasks.data.images import as_bytes, fit, prepare, read_batches
from tests.tasks.test_bad_input import directory_bomb


def write_idx(path, images):
    content = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_pngs(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03}.png")
    return folder


def test_each_form_gives_the_same_images(tmp_path, mnist):
    images = mnist["x_test"]
    np.savez_compressed(tmp_path / "keras.npz", **mnist)
    np.savez(tmp_path / "plain.npz", ids=np.arange(100), digits=images / 255)
    for path, n_inverted in (
        (tmp_path / "keras.npz", 0),
        (tmp_path / "plain.npz", 0),
        (write_idx(tmp_path / "idx3-ubyte", images), 0),
        (write_idx(tmp_path / "idx3-ubyte.gz", images), 0),
        (write_idx(tmp_path / "inverted", 255 - images), 100),
        (write_pngs(tmp_path / "light", images), 0),
        (write_pngs(tmp_path / "dark", 255 - images), 100),
    ):
        (batch,) = read_batches(path)
        np.testing.assert_array_equal(batch.images, images)
        assert batch.n_inverted == n_inverted
        assert batch.names == ([f"{i:03}.png" for i in range(100)] if path.is_dir() else [*range(100)])


def test_floats_of_0_to_1_and_other_integers_are_taken_anything_else_is_refused(mnist):
    images = mnist["x_test"]
    for given in (images / 255, images / np.float32(255), images.astype(np.int64)):
        assert (as_bytes(given, "it") == images).all()
    with pytest.raises(DataError, match=r"float64 in 0–255; give integers in 0–255 or floats in 0–1"):
        as_bytes(images.astype(float), "it")


def test_a_large_png_of_a_digit_becomes_what_mnist_has(mnist):
    """Scaled up, moved off the centre and put on grey paper, a digit comes back nearly as it was."""
    alike = []
    for image in mnist["x_test"][:50]:
        large = np.asarray(Image.fromarray(image).resize((140, 140), Image.Resampling.BICUBIC))
        paper = np.pad(200 - large // 2, ((10, 90), (70, 5)), constant_values=200)
        (fitted,), n_inverted = prepare(paper[np.newaxis])
        assert n_inverted == 1
        alike.append(np.corrcoef(fitted.ravel(), image.ravel())[0, 1])
        rows, columns = np.flatnonzero(fitted.any(axis=1)), np.flatnonzero(fitted.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) in (18, 19)
    assert np.median(alike) > 0.93  # one pixel off, it would be 0.78


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 2), (60, 60)])
def test_any_size_fits(shape):
    bar = np.pad(np.full(shape, 200, np.uint8), 30)
    assert fit(bar).max() >= 250
    assert not fit(np.full(shape, 90, np.uint8)).any()


@pytest.mark.parametrize(
    ("paper", "ink", "inverted"),
    [(0, 255, False), (255, 0, True), (60, 10, True), (160, 255, False), (0, 0, False), (255, 255, True)],
)
def test_paper_is_told_from_ink_by_the_images_own_range(paper, ink, inverted):
    image = np.full((1, 56, 56), paper, np.uint8)
    image[:, 10:40, 26:30] = ink
    prepared, n_inverted = prepare(image)
    assert n_inverted == inverted
    assert prepared.max() == (0 if paper == ink else 255)


def test_pngs_of_other_kinds(tmp_path, mnist):
    image = mnist["x_test"][0]
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([np.zeros((28, 28, 3), np.uint8), image])).save(tmp_path / "b transparent.PNG")
    Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "c 16 bits.png")
    Image.fromarray(np.dstack([255 - image] * 3)).save(os.fsencode(tmp_path) + b"/d \xff.png")
    (tmp_path / "notes.txt").write_text("no image")
    (batch,) = read_batches(tmp_path, [])
    assert batch.names == ["a.png", "b transparent.PNG", "c 16 bits.png", r"d \udcff.png"]
    assert (abs(batch.images - image.astype(int)) <= 1).all()


def bad_files(folder, images):
    np.savez(folder / "pickled.npz", x_test=np.array([{"a": 1}] * 8).reshape(2, 2, 2))
    np.savez(folder / "flat.npz", x_test=images.reshape(len(images), -1))
    np.savez(folder / "wide.npz", x_test=images.astype(np.int32) * 2)
    np.savez(folder / "nan.npz", x_test=np.full((3, 28, 28), np.nan))
    (folder / "noise.npz").write_bytes(b"noise")
    np.savez(folder / "damaged.npz", x_test=images)
    content = bytearray((folder / "damaged.npz").read_bytes())
    content[40_000] ^= 255
    (folder / "damaged.npz").write_bytes(content)
    whole = write_idx(folder / "idx", images).read_bytes()
    (folder / "short").write_bytes(whole[:-1])
    (folder / "long").write_bytes(whole + b"\0")
    (folder / "short.gz").write_bytes(gzip.compress(whole)[:-9])
    (folder / "labels").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    (folder / "huge").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    write_pngs(folder / "broken", images[:3])
    (folder / "broken" / "001.png").write_bytes((folder / "broken" / "000.png").read_bytes()[:60])
    return {
        "pickled.npz": "isn't an array of numbers",
        "flat.npz": r"no array of the shape \(n, height, width\)",
        "wide.npz": "int32 in 0–510; give integers in 0–255",
        "nan.npz": "float64 in nan–nan",
        "noise.npz": "is damaged or of another kind",
        "damaged.npz": "is damaged or of another kind: Bad CRC-32",
        "short": "claims 100 images and holds 99",
        "long": "claims 100 images and holds more",
        "short.gz": "is damaged or of another kind",
        "labels": "isn't an IDX file of images: it starts with 00000801",
        "huge": "4,294,967,295×4,294,967,295 pixels",
        "broken": r"001\.png",
        "missing.npz": "can't be read: No such file",
    }


def test_what_cannot_be_read_is_named_in_one_line(tmp_path, mnist):
    for name, message in bad_files(tmp_path, mnist["x_test"]).items():
        with pytest.raises(DataError, match=message) as caught:
            list(read_batches(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_files_of_a_folder_are_named_and_left_out(tmp_path, mnist):
    folder = write_pngs(tmp_path / "digits", mnist["x_test"][:5])
    (folder / "._001.png").write_bytes(b"Mac OS X")
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("digits of Ann")
    Image.fromarray(mnist["x_test"][0]).save(folder / "photo.jpg")
    (folder / "more").mkdir()
    left_out = []
    (batch,) = read_batches(folder, left_out)
    assert batch.names == [f"{n:03}.png" for n in range(5)]
    assert [line.split(str(folder) + "/")[1].split(" ")[0] for line in left_out] == [
        "._001.png",
        "empty.png",
        "half.png",
        "notes.txt",
        "photo.jpg",
    ]
    assert all("\n" not in line for line in left_out)
    with pytest.raises(DataError, match=r"\._001\.png"):
        list(read_batches(folder))


def test_a_bomb_in_a_zips_directory_is_refused_before_it_is_read(tmp_path):
    file = directory_bomb(tmp_path, None, n=30_000)
    with pytest.raises(DataError, match=r"directory\.npz has too many entries"):
        list(read_batches(file))
    # In the larger form the sizes stand elsewhere.
    content = file.read_bytes()
    file.write_bytes(content[:-22] + b"PK\6\7" + bytes(16) + content[-22:-10] + bytes(4) + content[-6:])
    with pytest.raises(DataError, match=r"directory\.npz has too many entries"):
        list(read_batches(file))


def test_a_png_that_would_fill_the_memory_is_refused(tmp_path):
    Image.new("RGBA", (8192, 8192)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 500_000
    with pytest.raises(DataError, match="8,192×8,192 pixels; make it smaller"):
        list(read_batches(tmp_path))


def test_memory_stays_bounded(tmp_path):
    """A file of 60,000 images, 47 MB, is read within an eighth of that, as far as Python and NumPy allocate."""
    np.savez_compressed(tmp_path / "large.npz", x_test=np.zeros((60_000, 28, 28), np.uint8))
    tracemalloc.start()
    assert sum(len(batch.images) for batch in read_batches(tmp_path / "large.npz")) == 60_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000
