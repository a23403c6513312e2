"""The report says everything, alone and safely: made from hand-written records, read back by parsers."""

import base64
import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from artifacts import pictures, report
from artifacts.markdown import escape_markdown
from artifacts.records.data import Dataset, LabelCheck, Outcome, Validation
from artifacts.records.evaluation import (
    Case,
    Cause,
    ClassMetrics,
    Evaluation,
    Explanation,
    InfraValidation,
    Report,
    Robustness,
)
from artifacts.records.model import Epoch, Model, Training
from artifacts.records.release import Check, Comparison, Registration, Verdict, Version
from artifacts.records.run import Step
from artifacts.report import RunReport
from artifacts.store import put, put_bytes
from tasks.evaluate import measure
from tests.artifacts.conftest import make_case, make_slices

HOSTILE = (
    "<script>alert(1)</script> | `code` \r\n\n# head\n- [x](javascript:alert(1)) ![x](http://x/y.png) **b** _i_ &lt; \\"
)
HOSTILE_SHOWN = " ".join(HOSTILE.split())
FRAGMENTS = (
    report.summary,
    lambda run: report.data_validation(run.validation, run.labels),
    report.learning_curves,
    report.confusion_matrix,
    report.wrong_predictions,
    report.robustness,
    report.confidence,
    report.model_card,
    report.lineage,
)
DIGESTS = {name: character * 64 for name, character in zip(("data", "code", "model"), "abc", strict=True)}


PNGS = {}


def picture(key, draw, *arguments):
    """Draw a picture once for each key, since drawing takes longest, and store it."""
    if key not in PNGS:
        PNGS[key] = draw(*arguments)
    return put_bytes(".png", PNGS[key])


def make_run(n_wrong=3, **changes):
    """A run whose test set has 400 images, the last `n_wrong` predicted wrong."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10).astype(np.uint8)
    predicted = labels.copy()
    predicted[400 - n_wrong :] = (labels[400 - n_wrong :] + 1) % 10
    probabilities = np.full((400, 10), 0.02, np.float32)
    probabilities[np.arange(400), predicted] = np.linspace(0.5, 0.8, 400)
    images = rng.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predicted), 1)

    def array(content):
        return put(".npy", lambda path: np.save(path, content))

    history = tuple(
        Epoch(epoch=i, loss=0.1, accuracy=0.97, val_loss=0.08, val_accuracy=0.98, learning_rate=0.004, seconds=8.25)
        for i in (1, 2)
    )
    model = Model(
        weights_digest=DIGESTS["model"],
        network="baseline",
        n_parameters=3_156_098,
        keras=put_bytes(".keras", b"keras"),
        h5=put_bytes(".h5", b"h5"),
    )
    scaled = images[..., np.newaxis] / np.float32(255)
    cases = [make_case(i, int(labels[i]), int(predicted[i])) for i in range(399, 399 - n_wrong, -1)]
    by_hand = {
        "loss": 0.0264,
        "expected_calibration_error": 0.0042,
        "n_for_a_person": 12,
        "classes": tuple(
            ClassMetrics(label=i, precision=0.9 + i / 1000, recall=0.95, f1=0.93, support=40) for i in range(10)
        ),
    }
    evaluation = Evaluation(
        weights_digest=DIGESTS["model"],
        data_digest=DIGESTS["data"],
        probabilities=array(probabilities),
        **measure(labels, probabilities) | by_hand,
    )
    robustness = Robustness(
        weights_digest=DIGESTS["model"], data_digest=DIGESTS["data"], slices=make_slices(), right=array(labels)
    )
    fields = {
        "id": "3b0f6d0c-0000-4000-8000-000000000001",
        "name": "cerulean-otter",
        "started": datetime(2026, 3, 4, 2, 0, tzinfo=UTC),
        "parameters": {
            "train": {"epochs": 2, "label_smoothing": 0.05, "network": "baseline"},
            "ingest": {"path": None},
        },
        "dataset": Dataset(
            source="package",
            digest=DIGESTS["data"],
            x_train=array(images[:10]),
            y_train=array(labels[:10]),
            x_test=array(images),
            y_test=array(labels),
        ),
        "validation": Validation(
            success=True,
            outcomes=(
                outcome(meaning="labels are 0–9"),
                outcome(meaning="no image twice", severity="warning", success=False, sample_indices=(17, 4711)),
            ),
            result=put_bytes(".json", b"{}"),
            data_docs=put_bytes(".html", b"<p>"),
        ),
        "training": Training(
            model=model,
            history=history,
            n_train=55_000,
            n_validation=5_000,
            precision="float32",
            temperature=0.8,
            processor="x86_64, 2 cores",
            fit_seconds=17.5,
            fit_cpu_seconds=30.5,
        ),
        "labels": LabelCheck(
            data_digest=DIGESTS["data"],
            n_wrong=3,
            n_suspects=2,
            csv=put_bytes(
                ".csv",
                b"index,label,prediction,quality,suspect\n5,1,7,0.01,True\n6,1,7,0.02,True\n8,3,5,0.4,False\n",
            ),
            images=array(images[[5, 6]]),
        ),
        "evaluation": evaluation,
        "robustness": robustness,
        "explanation": Explanation(
            causes=tuple(
                Cause(name=name, meaning=f"the meaning of {name}", times=n_wrong * (name == "ambiguous"))
                for name in ("label error", "ambiguous", "atypical", "unexplained")
            ),
            cases=put_bytes(".json", TypeAdapter(list[Case]).dump_json(cases)),
            images=array(images[[[case.index, 7, 8, 9] for case in cases[:200]]].reshape(-1, 4, 28, 28)),
            suspects=put_bytes(".csv", b"index,label,prediction,quality\n"),
        ),
        "rival": None,
        "infra": InfraValidation(
            n_images=400,
            largest_deviation=2e-7,
            size=12_600_000,
            load_seconds=0.2,
            seconds_for_1=0.004,
            seconds_for_1000=0.21,
            peak_bytes=700_000_000,
        ),
        "verdict": verdict("promote", minimum=True),
        "report": Report(
            pictures={
                "learning_curves": picture("learning curves", pictures.learning_curves, history),
                "confusion_matrix": picture(("confusion", n_wrong), pictures.confusion_matrix, matrix.tolist()),
                "wrong_predictions": picture(("wrong", n_wrong), pictures.wrong_predictions, scaled, cases),
                "robustness": picture("robustness", pictures.robustness, make_slices(), ()),
                "confidence": picture("confidence", pictures.confidence, labels, probabilities, probabilities, 12),
            },
            wrong_predictions_csv=put_bytes(".csv", pictures.wrong_predictions_csv(cases, probabilities)),
        ),
        "registration": registration(model, champion=7, previous=6),
        "code_digest": DIGESTS["code"],
        "git_revision": "3fce3a0-dirty",
        "libraries": {"keras": "3.15.0"},
        "steps": (
            Step(name="ingest", state="reused", seconds=1.5, reused_from="an-earlier-run"),
            Step(name="train", state="computed", seconds=57.5, changes=("train.epochs: 3 → 2", "code of tasks.train")),
        ),
    }
    return RunReport(**fields | changes)


def outcome(**changes):
    fields = {
        "table": "train images",
        "expectation": "expect_column_values_to_be_in_set",
        "column": "label",
        "severity": "error",
        "success": True,
        "observed": "0 unexpected",
    }
    return Outcome(**fields | changes)


def verdict(decision, **checks):
    return Verdict(
        decision=decision,
        checks=tuple(
            Check(name=name, passed=passed, on_failure="hold", detail="0.99 of 0.98") for name, passed in checks.items()
        ),
        rival=None,
    )


def registration(model, champion, previous, name="mnist"):
    version = Version(name=name, version=7, mlflow_run_id=name, model=model)
    return Registration(version=version, created=True, champion_number=champion, previous_champion_number=previous)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_HOME", str(tmp_path_factory.mktemp("home")))
        yield make_run()


@pytest.fixture(scope="module")
def hostile(run):
    """The run with hostile text wherever text can come from outside."""
    return run.model_copy(
        update={
            "name": HOSTILE,
            "parameters": {HOSTILE: {HOSTILE: HOSTILE}, "train": {"label_smoothing": HOSTILE}},
            "dataset": run.dataset.model_copy(update={"source": HOSTILE}),
            "validation": run.validation.model_copy(
                update={
                    "outcomes": (
                        outcome(table=HOSTILE, expectation=HOSTILE, column=HOSTILE, meaning=HOSTILE, observed=HOSTILE),
                    )
                }
            ),
            "verdict": verdict("promote", **{HOSTILE: False}),
            "training": run.training.model_copy(update={"precision": HOSTILE}),
            "registration": registration(run.training.model, champion=7, previous=6, name=HOSTILE),
            "git_revision": HOSTILE,
            "libraries": {HOSTILE: HOSTILE},
            "steps": (Step(name=HOSTILE, state="computed", seconds=1.0, changes=(HOSTILE,)),),
        }
    )


class Page(HTMLParser):
    """An HTML page's tags with their attributes, and its texts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def rows(markdown):
    """The cells of a Markdown text's tables, as text, row by row."""
    found = []
    for before, token in pairwise(MarkdownIt("commonmark").enable("table").parse(markdown)):
        if before.type == "tr_open":
            found.append([])
        if before.type in ("td_open", "th_open"):
            found[-1].append("".join(child.content for child in token.children))
    return found


def elements(markdown):
    """What a Markdown text is rendered to, apart from paragraphs, tables and plain text: (kind, target or content)."""
    plain = {"text", "softbreak", "inline", "strong_open", "strong_close"}
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    tokens += [child for token in tokens for child in token.children or ()]
    return [
        (token.type, token.attrs.get("src") or token.attrs.get("href") or token.content)
        for token in tokens
        if token.type not in plain and not re.match("paragraph|table|t[hrd]|thead|tbody", token.type)
    ]


# The page


def test_html_loads_nothing_and_runs_nothing(run):
    html = report.report_html(run)
    page = Page(html)
    assert "<script" not in html
    assert not page.all("link", "iframe", "object", "embed")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert not re.search(r"https?:|url\(|@import", html)
    assert any(meta.get("content", "").startswith("default-src 'none'") for meta in page.all("meta"))


def test_html_is_accessible(run):
    page = Page(report.report_html(run))
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2", "h3"}
    contents = [link["href"].removeprefix("#") for link in page.all("a")]
    assert contents == [heading["id"] for heading in page.all("h2")]


def test_html_begins_with_the_verdict_and_has_every_part(run):
    html = report.report_html(run)
    assert html.index(run.headline) < html.index("0.9925") < html.index('alt="Loss and accuracy')
    for picture in (*run.report.pictures.values(),):
        assert base64.b64encode(picture.read_bytes()).decode() in html
    for text in (
        "3 of 400", "0.0264", "0.0042", "8.2", "0.9090", "labels are 0–9", "17, 4711", "train.epochs: 3 → 2",
        "an-earlier-run", "3.15.0", "3fce3a0-dirty", "2026-03-04 02:00 UTC", *DIGESTS.values(), run.parameters_digest,
    ):  # fmt: skip
        assert text in html, text


@pytest.mark.parametrize("n_wrong", [0, 1, 300])
@pytest.mark.usefixtures("home")
def test_html_has_every_wrong_prediction_and_its_image_and_stays_small(n_wrong):
    run = make_run(n_wrong)
    html = report.report_html(run)
    shown = min(n_wrong, 200)
    found = re.findall(
        r'class="case" data-cause="(.*?)" data-label="(\d)" data-prediction="(\d)"'
        r'.*?base64,([^"]+)" alt="Test image (\d+)',
        html,
        re.DOTALL,
    )
    assert [(cause, int(label), int(taken), int(index)) for cause, label, taken, _, index in found] == [
        ("ambiguous", index % 10, (index + 1) % 10, index) for index in range(399, 399 - shown, -1)
    ]
    images = np.load(run.dataset.x_test.path)
    for *_, picture, index in found[:1]:
        assert base64.b64decode(picture) == pictures.thumbnail(images[int(index)])
    assert ("No wrong predictions" in html) == (n_wrong == 0)
    assert len(html) < 3_000_000


def test_hostile_text_does_nothing_in_html(hostile, run):
    page = Page(report.report_html(hostile))
    assert not page.all("script")
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(report.report_html(run)).tags}
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    shown = [text for text in page.texts if "alert(1)" in text]
    assert len(shown) > 12
    assert all(HOSTILE in text or HOSTILE.replace("\r\n", "\n") in text for text in shown)


# Markdown


def test_markdown_report_holds_every_fragment_and_links_to_the_pictures_next_to_it(run):
    markdown = report.report_markdown(run)
    headings = re.findall("^#+ .*$", markdown, re.MULTILINE)
    assert headings[:2] == ["# MNIST run cerulean-otter", "## Verdict"]
    targets = [target for kind, target in elements(markdown) if kind in ("image", "link_open")]
    assert sorted(targets) == [
        "confidence.png", "confusion_matrix.png", "data_docs.html", "learning_curves.png", "robustness.png",
        "test_labels.csv", "validation.json", "wrong_predictions.csv", "wrong_predictions.png",
    ]  # fmt: skip
    for fragment in FRAGMENTS:
        text = re.sub(r"\(data:[^)]*\)", "", fragment(run))
        assert text in re.sub(r"\(\w+\.png\)", "", markdown)
    assert ["train", "epochs", "2"] in rows(markdown)
    assert ["ingest", "path", "null"] in rows(markdown)


@pytest.mark.usefixtures("home")
def test_markdown_report_lists_every_wrong_prediction():
    listed = [row for row in rows(report.report_markdown(make_run(300))) if len(row) == 6 and row[3] == "ambiguous"]
    assert [int(row[0]) for row in listed] == list(range(399, 99, -1))


def test_summary_says_the_verdict_first_and_what_was_reused(run):
    markdown = report.summary(run)
    assert markdown.startswith(f"**{run.headline}**\n")
    assert rows(markdown)[1] == ["Test accuracy", "0.9925"]
    assert ["Wrong predictions", "3 of 400"] in rows(markdown)
    assert "\n3 wrong predictions by probable cause: 3 ambiguous.\n" in markdown
    assert ["minimum", "passed", "0.99 of 0.98"] in rows(markdown)
    assert rows(markdown)[-2:] == [
        ["ingest", "reused", "1.5", "from run an-earlier-run"],
        ["train", "computed", "57.5", "train.epochs: 3 → 2; code of tasks.train"],
    ]


def test_data_validation_puts_broken_expectations_first(run):
    assert "2 expectations, 1 broken" in report.data_validation(run.validation)
    assert rows(report.data_validation(run.validation))[1:] == [
        ["broken", "warning", "train images", "label", "no image twice", "0 unexpected, e.g. rows 17, 4711"],
        ["met", "error", "train images", "label", "labels are 0–9", "0 unexpected"],
    ]


@pytest.mark.parametrize(
    "name", ["learning_curves", "confusion_matrix", "wrong_predictions", "robustness", "confidence"]
)
def test_a_fragment_embeds_its_picture(name, run):
    [(kind, uri)] = elements(getattr(report, name)(run))
    assert kind == "image"
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == run.report.pictures[name].read_bytes()


def test_learning_curves_list_the_history(run):
    listed = rows(report.learning_curves(run))
    assert listed[2] == ["2", "0.1000", "0.9700", "0.0800", "0.9800", "0.004", "8.2"]
    assert len(listed) == 3


@pytest.mark.usefixtures("home")
def test_confusion_matrix_names_the_most_frequent_confusions_and_lists_the_classes():
    run = make_run(12)
    markdown = report.confusion_matrix(run)
    assert "Most frequent confusions: 8 for 9 (2 times), 9 for 0 (2 times), 0 for 1 (1 time)," in markdown
    assert rows(markdown)[-1] == ["9", "0.9090", "0.9500", "0.9300", "40"]


@pytest.mark.parametrize(
    ("n_wrong", "listed", "words"),
    [(0, 0, "No wrong predictions."), (1, 1, "1 wrong prediction,"), (60, 50, "50 of 60 wrong predictions,")],
)
@pytest.mark.usefixtures("home")
def test_wrong_predictions_list_the_first_fifty(n_wrong, listed, words):
    markdown = report.wrong_predictions(make_run(n_wrong))
    assert words in markdown
    assert [row[:3] for row in rows(markdown) if len(row) == 6 and row[0].isdecimal()] == [
        [f"{i}", f"{i % 10}", f"{(i + 1) % 10}: 80.0 %, {i % 10}: 10.0 %, {(i + 5) % 10}: 10.0 %"]
        for i in range(399, 399 - listed, -1)
    ]


@pytest.mark.usefixtures("home")
def test_the_champions_figures_stand_beside_the_models():
    run = make_run()
    better = run.evaluation.model_copy(update={"accuracy": 0.9975, "n_wrong": 1})
    comparison = Comparison(
        won=(17, 18), lost=(399,), n=400, p_better=0.5, p_worse=0.9, p_not_worse=0.1, p_worse_by_class=(1.0,) * 10,
        images_needed=None,
    )  # fmt: skip
    against = run.model_copy(
        update={
            "rival": better,
            "rival_robustness": run.robustness.model_copy(update={"slices": make_slices(99)}),
            "verdict": run.verdict.model_copy(update={"comparison": comparison}),
        }
    )
    assert ["Test accuracy", "0.9925", "0.9975"] in rows(report.summary(against))
    assert "Right where the champion is wrong: 2 test images, no. 17, 18." in report.wrong_predictions(against)
    assert rows(report.robustness(against))[1][-1] == "0.9900"
    html = report.report_html(against)
    assert "champion: 0.9975" in html
    assert 'alt="Test image 17, labelled 7"' in html


def test_the_summary_links_to_what_make_up_serves(run):
    address = "http://127.0.0.1:4202/#/models/mnist/versions/7"
    linked = report.summary(run.model_copy(update={"links": {"version 7 in MLflow": address}}))
    assert [target for kind, target in elements(linked) if kind == "link_open"] == [address]
    assert not [target for kind, target in elements(report.summary(run)) if kind == "link_open"]


def test_data_validation_lists_the_labels_that_look_wrong(run):
    markdown = report.data_validation(run.validation, run.labels)
    assert "2 of the training labels look wrong" in markdown
    assert rows(markdown)[-2:] == [["5", "1", "7", "0.01"], ["6", "1", "7", "0.02"]]


def test_model_card_says_what_the_model_is(run):
    card = dict(rows(report.model_card(run)))
    assert card["Network"] == "baseline, 3,156,098 parameters"
    assert (card["Epochs"], card["Fit"]) == ("2", "17.5 s in float32")
    assert card["Test accuracy"] == "0.9925"


def test_what_a_distilled_network_learnt_is_said(run):
    parameters = run.parameters | {"train": run.parameters["train"] | {"teachers": 3}}
    distilled = run.model_copy(update={"parameters": parameters})
    learnt = [dict(rows(report.model_card(one)))["Learnt of each image"] for one in (run, distilled)]
    assert learnt == ["the label", "the mean answer of 3 networks, trained before it"]
    for write in (report.learning_curves, report.report_html):
        assert "labels are smoothed" in write(run)
        assert "labels are smoothed" not in write(distilled)
        assert "The model learns the mean answer of 3 networks" in write(distilled)


def test_a_network_that_averages_shifts_is_told_from_one_that_does_not(run):
    parameters = run.parameters | {"train": run.parameters["train"] | {"average_shifts": True}}
    networks = [
        dict(rows(report.model_card(one)))["Network"]
        for one in (run, run.model_copy(update={"parameters": parameters}))
    ]
    assert networks[1] == f"{networks[0]}, averaged over the image and its shifts by a pixel"


def test_lineage_goes_from_the_data_to_the_version(run):
    markdown = report.lineage(run)
    [(kind, diagram)] = elements(markdown)
    assert kind == "fence"
    assert diagram.startswith("flowchart LR\n")
    assert "data & code & parameters --> model --> version" in diagram
    assert f'data["data<br/>{DIGESTS["data"][:12]}"]' in diagram
    table = dict(rows(markdown))
    assert DIGESTS.items() <= table.items()
    assert table["version"] == "7"


@pytest.mark.usefixtures("home")
def test_artifacts_stay_small():
    run = make_run(300)
    assert sum(len(fragment(run)) for fragment in FRAGMENTS) < 200_000


@pytest.mark.parametrize("render", [report.report_markdown, *FRAGMENTS])
def test_hostile_text_does_nothing_in_markdown(render, hostile, run):
    digests = run.parameters_digest[:12], hostile.parameters_digest[:12]
    assert elements(render(hostile)) == [
        (kind, target.replace("cerulean-otter", HOSTILE_SHOWN).replace(*digests))
        for kind, target in elements(render(run))
    ]
    assert {len(row) for row in rows(render(hostile))} <= {len(row) for row in rows(render(run))}
    for row in rows(render(hostile)):
        for cell in row:
            assert "alert" not in cell or HOSTILE_SHOWN in cell


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "a|b",
        "`a",
        "a``b`c",
        "*a*",
        "_a_ __b__ c_d",
        "<b>",
        "&amp;",
        "[a](b)",
        "![a](b)",
        "~~a~~",
        "$a$",
        "\\|",
    ],
)
def test_escaped_text_shows_as_it_is_in_a_tables_cell(text):
    escaped = escape_markdown(text)
    markdown = f"| a | b |\n| --- | --- |\n| {escaped} | c |\n"
    assert rows(markdown)[1] == [" ".join(text.split()), "c"]
    assert elements(markdown) == []
    assert not re.search(r"[<>]|(?<!\\)[][`|]", escaped), "nor in a parser that is less strict"


def test_names_stay_readable_in_plain_text():
    name = "expect_column_max_to_be_between(train.epochs: 3 → 1, 0.004)"
    assert escape_markdown(name) == name


# The record


@pytest.mark.parametrize(
    ("judged", "champion", "previous", "sentence"),
    [
        (verdict("promote", minimum=True), 7, 6, "Promoted: version 7 is the champion, in place of version 6."),
        (verdict("promote", minimum=True), 7, None, "Promoted: version 7 is the champion."),
        (verdict("promote", minimum=True), 7, 7, "Unchanged: version 7 is the champion."),
        (
            verdict("hold", minimum=True, rival=False), 6, 6,
            "Held back: version 7 is registered, and version 6 remains the champion (failed: rival).",
        ),
        (
            verdict("reject", minimum=False, rival=False), None, None,
            "Rejected: version 7 is registered, and there is no champion yet (failed: minimum, rival).",
        ),
    ],
)  # fmt: skip
def test_the_headline_says_the_verdict_and_what_follows(judged, champion, previous, sentence, run):
    changes = {"verdict": judged, "registration": registration(run.training.model, champion, previous)}
    assert run.model_copy(update=changes).headline == sentence


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (
            Step(name="train", state="reused", seconds=57.5, reused_from="x"),
            "train          reused from run x (57.5 s then)",
        ),
        (
            Step(name="gate", state="computed", seconds=0.1, changes=("a", "b")),
            "gate           computed in 0.1 s: a; b",
        ),
    ],
)
def test_a_step_in_one_line(step, line):
    assert step.line == line


def test_the_parameters_digest_depends_on_the_values_alone(run):
    other_order = {"ingest": {"path": None}, "train": {"network": "baseline", "label_smoothing": 0.05, "epochs": 2}}
    other_value = {"ingest": {"path": None}, "train": {"network": "baseline", "epochs": 3}}
    assert run.model_copy(update={"parameters": other_order}).parameters_digest == run.parameters_digest
    assert run.model_copy(update={"parameters": other_value}).parameters_digest != run.parameters_digest


def test_reading_the_report_needs_no_matplotlib():
    code = "import sys, artifacts.report; sys.exit(bool({'matplotlib', 'prefect', 'keras'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
