"""Pictures are small, sharp, repeatable, and show what they should; checked on hand-made numbers."""

import csv
import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from artifacts import pictures
from artifacts.records.model import Epoch
from tests.artifacts.conftest import make_case, make_slices

DISTINCT = np.random.default_rng(0).random((40, 28, 28, 1), dtype=np.float32)


def history(n):
    return [
        Epoch(
            epoch=epoch,
            loss=0.5 / epoch,
            accuracy=1 - 0.1 / epoch,
            val_loss=0.3 / epoch,
            val_accuracy=1 - 0.05 / epoch,
            learning_rate=1e-3,
            seconds=10.0,
        )
        for epoch in range(1, n + 1)
    ]


def cases(n_wrong):
    """Wrong predictions, the later images first."""
    return [make_case(i, i % 10, (i + 1) % 10) for i in reversed(range(n_wrong))]


def open_png(content):
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.info.keys() <= {"transparency"}, "no date and no software's name: equal pictures have equal bytes"
    return image


@pytest.fixture
def drawn(monkeypatch):
    """Make the functions return the Matplotlib figure itself, whose texts and lines can be read."""
    monkeypatch.setattr(pictures, "_png", lambda figure: figure)


def titles(figure: Figure):
    return [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center") if axes.get_title(loc)]


@pytest.mark.parametrize("n_epochs", [1, 2, 30])
def test_learning_curves_are_a_small_sharp_picture(n_epochs):
    content = pictures.learning_curves(history(n_epochs))
    assert open_png(content).size == (1520, 608)
    assert len(content) < 40_000


@pytest.mark.parametrize("n_epochs", [1, 2, 30])
@pytest.mark.usefixtures("drawn")
def test_learning_curves_show_the_four_curves_in_one_figure(n_epochs):
    figure = pictures.learning_curves(history(n_epochs))
    lines = {line.get_label().split()[0]: line for axes in figure.axes for line in axes.get_lines()}
    assert lines.keys() == {"loss", "val_loss", "accuracy", "val_accuracy"}
    assert list(lines["val_loss"].get_ydata()) == [0.3 / epoch for epoch in range(1, n_epochs + 1)]
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 2
    for axes in figure.axes:
        assert axes.get_legend()
        assert {line.get_marker() for line in axes.get_lines()} == {"o", "s"}, "one epoch makes no line"
        ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)


@pytest.mark.usefixtures("drawn")
def test_learning_curves_may_begin_within_the_first_epoch():
    quarters = [epoch.model_copy(update={"epoch": epoch.epoch / 4}) for epoch in history(4)]
    for axes in pictures.learning_curves(quarters).axes:
        assert list(axes.get_lines()[0].get_xdata()) == [0.25, 0.5, 0.75, 1]
        assert axes.get_xlim() == (0, 1.5)


def test_pictures_are_the_same_whatever_the_users_matplotlib_settings():
    def draw():
        return (
            pictures.learning_curves(history(3)),
            pictures.confusion_matrix([[5, 2], [1, 7]]),
            pictures.wrong_predictions(DISTINCT, cases(3)),
            pictures.robustness(make_slices(), ()),
            pictures.confidence(*confident(40), 3),
        )

    expected = draw()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 30}):
        assert draw() == expected
        assert mpl.rcParams["font.size"] == 30
    assert pictures.learning_curves(history(4)) != expected[0]


def orange(content):
    """How many pixels have the colour of an error."""
    red, _, blue = np.moveaxis(np.asarray(open_png(content).convert("RGB"), dtype=int), -1, 0)
    return int((red - blue > 100).sum())


def test_confusion_matrix_colours_the_errors_and_not_the_diagonal():
    right = np.eye(10, dtype=int) * 1000
    one_error = right.copy()
    one_error[4, 9] = 7
    content = pictures.confusion_matrix(one_error.tolist())
    assert open_png(content).size == (1056, 1072)
    assert len(content) < 40_000
    assert orange(pictures.confusion_matrix(right.tolist())) == 0
    assert orange(content) > 4000, "the error has its full colour next to a thousand right ones"


@pytest.mark.usefixtures("drawn")
def test_confusion_matrix_prints_counts_of_label_by_prediction_and_no_zeros():
    axes = pictures.confusion_matrix([[50, 2], [0, 70]]).axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "50", (1, 0): "2", (1, 1): "70"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "label")
    assert titles(axes.figure) == ["2 of 122 predicted wrong: the coloured cells"]


@pytest.mark.parametrize(("n_wrong", "rows"), [(0, 0), (1, 1), (4, 1), (5, 2), (16, 4), (40, 4)])
def test_wrong_predictions_are_a_small_picture_of_up_to_four_rows(n_wrong, rows):
    content = pictures.wrong_predictions(DISTINCT, cases(n_wrong))
    assert open_png(content).size == (1216, 96 + 384 * rows)
    assert len(content) < 60_000


@pytest.mark.parametrize(
    ("n_wrong", "title"),
    [
        (0, "No wrong predictions"),
        (1, "The only wrong prediction"),
        (5, "All 5 wrong predictions, the clearest of each cause first"),
        (40, "16 of 40 wrong predictions, the clearest of each cause first"),
    ],
)
@pytest.mark.usefixtures("drawn")
def test_wrong_predictions_say_how_many_there_are(n_wrong, title):
    assert pictures.wrong_predictions(DISTINCT, cases(n_wrong)).get_suptitle() == title


@pytest.mark.usefixtures("drawn")
def test_wrong_predictions_are_shown_in_the_order_of_the_cases_with_their_cause():
    figure = pictures.wrong_predictions(DISTINCT, cases(20))
    shown = range(19, 3, -1)
    assert titles(figure) == [f"Label {i % 10}, Predict {(i + 1) % 10}" for i in shown]
    for axes, index in zip(figure.axes, shown, strict=True):
        np.testing.assert_array_equal(np.squeeze(axes.images[0].get_array()), DISTINCT[index, ..., 0])
        assert not axes.axison
        assert [text.get_text() for text in axes.texts] == [f"ambiguous\n80.0% sure · no. {index}"]


@pytest.mark.usefixtures("drawn")
def test_robustness_shows_each_slice_beside_the_champions():
    alone = pictures.robustness(make_slices(), ()).axes[0]
    assert [label.get_text() for label in alone.get_yticklabels()] == ["0", "thin, to 2.5 px", "rotated by 15°"]
    assert not alone.get_legend()
    both = pictures.robustness(make_slices(), make_slices(100)).axes[0]
    assert {text.get_text() for text in both.get_legend().get_texts()} == {"this model", "champion"}
    assert min(min(line.get_xdata()) for line in both.get_lines()) > 0, "no error has a place on a logarithmic axis"


def confident(n, n_wrong=4):
    """Labels and probabilities of n images, the last ones wrong and less sure; and the same less sure throughout."""
    labels = np.arange(n) % 10
    sharp = np.full((n, 10), 0.01)
    sharp[np.arange(n), labels] = 0.91
    sharp[n - n_wrong :] = np.roll(sharp[n - n_wrong :] * 0.6 + 0.04, 1, axis=1)
    return labels, sharp, sharp * 0.5 + 0.05


@pytest.mark.usefixtures("drawn")
def test_confidence_shows_the_bins_and_what_to_hand_over():
    reliability, handed_over = pictures.confidence(*confident(40), 4).axes
    model = {line.get_label(): line for line in reliability.get_lines()}["the model"]
    assert [(round(x, 2), y) for x, y in zip(*model.get_data(), strict=True)] == [(0.59, 0.0), (0.91, 1.0)]
    assert [text.get_text() for text in handed_over.texts] == ["99.9 % right: hand over 4 of 40"]
    assert handed_over.get_lines()[0].get_ydata()[[0, -1]].tolist() == [0, pytest.approx(10)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "float64"])
def test_thumbnail_takes_every_type_that_the_data_may_have(dtype):
    image = np.arange(28 * 28).reshape(28, 28) % 256
    assert pictures.thumbnail(image.astype(dtype)) == pictures.thumbnail(image.astype(np.uint8))


def test_thumbnail_is_dark_ink_on_white_pixel_by_pixel():
    image = np.zeros((28, 28), np.uint8)
    image[3, 5], image[4, 5] = 255, 51
    pixels = np.asarray(open_png(pictures.thumbnail(image)))
    assert pixels.shape == (28, 28)
    assert (pixels[0, 0], pixels[3, 5], pixels[4, 5]) == (255, 0, 204)


def test_csv_lists_every_wrong_prediction_with_its_cause_and_probabilities_the_most_confident_first():
    probabilities = np.full((3, 10), 0.01, np.float32)
    probabilities[[0, 1, 2], [5, 1, 9]] = 0.91, 0.91, 0.999
    wrong = [make_case(0, 3, 5, 0.91, status="new"), make_case(2, 4, 9, 0.999, cause="label error")]
    rows = list(csv.DictReader(pictures.wrong_predictions_csv(wrong, probabilities).decode().splitlines()))
    assert [tuple(row.values())[:6] for row in rows] == [
        ("2", "4", "9", "0.999", "label error", ""),
        ("0", "3", "5", "0.91", "ambiguous", "new"),
    ]
    assert [rows[1][f"p{digit}"] for digit in range(10)] == ["0.01"] * 5 + ["0.91"] + ["0.01"] * 4


def test_csv_of_no_wrong_prediction_has_its_header():
    content = pictures.wrong_predictions_csv([], np.eye(10, dtype=np.float32)[[1]])
    assert content == b"index,label,prediction,confidence,cause,status,p0,p1,p2,p3,p4,p5,p6,p7,p8,p9\n"


def test_drawing_needs_no_pyplot():
    code = (
        "import sys; from artifacts import pictures; pictures.confusion_matrix([[1, 2], [3, 4]]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_disagreements_show_what_only_one_model_has_right():
    rng = np.random.default_rng(0)
    images, labels = rng.random((40, 28, 28, 1), np.float32), np.arange(40) % 10
    predictions, champion = labels.copy(), labels.copy()
    predictions[:11] = (labels[:11] + 1) % 10  # the champion alone is right
    champion[20:23] = (labels[20:23] + 1) % 10  # the model alone is right
    drawn = pictures.disagreements(images, labels, predictions, champion)
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) < 100_000
    assert drawn == pictures.disagreements(images, labels, predictions, champion)
    assert drawn != pictures.disagreements(images, labels, champion, predictions)
    assert pictures.disagreements(images, labels, labels, labels).startswith(b"\x89PNG")
