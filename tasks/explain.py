"""Explain: find the probable cause of each wrong prediction: the label, the image, or the model.

Each wrong prediction gets the first of these causes that fits:

- *label error*: the model, which never saw the image, is 90 points surer of another class than of the label; nine of
  the ten nearest training images have that other class; and they aren't far away.
- *ambiguous*: the second class is at least half as probable as the first.
- *confusable pair*: label and prediction are taken for each other more often than if errors were spread evenly over all
  pairs of classes (binomial test, false discovery rate 5 %).
- *atypical*: the nearest training images are farther away than those of 99 % of the images that were predicted right.
- *unexplained*: none of these.

Distances are cosine distances of features, which are the input of the network's last layer.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prefect import task
from pydantic import TypeAdapter

from artifacts.dataset import Images, Labels, load_test, read_array, scale
from artifacts.records.data import N_CLASSES, Dataset
from artifacts.records.evaluation import Case, Cause, Evaluation, Explanation, Guess, Neighbour
from artifacts.records.model import Model
from artifacts.store import put, put_bytes
from tasks.model.calibration import normalize
from tasks.model.saved import import_keras, load_model
from tasks.running.cache import StepCache, origin
from tasks.running.logs import run_logger

N_NEIGHBOURS, N_SHOWN = 10, 3
# A threshold of cleanlab's normalized margin, in 0–1: (1 + the label's probability - the largest other one) / 2.
MISLABELLED = 0.05
AGREEING = 9
AMBIGUOUS = 0.5
FALSE_DISCOVERIES = 0.05
FAR = 0.99
# The share of the images predicted right whose distances count as usual.
N_REFERENCE = 1000
N_SUSPECTS = 200
# The nearest images are searched among this many training images: all of MNIST's, or as many drawn at random.
N_SEARCHED = 60_000
# A report with more pictures would not help its reader.
N_PICTURED = 200

Distances = npt.NDArray[np.floating]
Pair = frozenset[int]


@task(
    name="explain",
    cache_policy=StepCache(libraries=("cleanlab", "keras", "numpy", "scikit-learn", "scipy", "tensorflow")),
)
def explain_errors(model: Model, dataset: Dataset, evaluation: Evaluation, rival: Evaluation | None) -> Explanation:
    """Find the probable cause of each wrong prediction, with the evidence, and the nearest training images."""
    from cleanlab.rank import get_label_quality_scores

    x_train, y_train, test = read_array(dataset.x_train), read_array(dataset.y_train), load_test(dataset)
    probabilities = normalize(read_array(evaluation.probabilities))
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != test.y)
    right = np.flatnonzero(predictions == test.y)
    if len(right) > N_REFERENCE:
        right = np.random.default_rng(0).choice(right, N_REFERENCE, replace=False)
    distances, neighbours = find_neighbours(model, x_train, np.concatenate([test.x[wrong], test.x[right]]))
    quality = get_label_quality_scores(test.y.astype(int), probabilities, method="normalized_margin")
    evidence = gather_evidence(
        test.y[wrong],
        probabilities[wrong],
        quality[wrong],
        y_train[neighbours[: len(wrong)]],
        distances[: len(wrong)],
        distances[len(wrong) :],
    )
    rival_right = None if rival is None else read_array(rival.probabilities).argmax(axis=1) == test.y
    cases = [
        Case(
            index=i,
            label=test.y[i],
            cause=cause,
            evidence=words,
            status=None if rival_right is None else "new" if rival_right[i] else "shared",
            guesses=tuple(Guess(label=k, probability=probabilities[i, k]) for k in np.argsort(-probabilities[i])[:3]),
            neighbours=tuple(
                Neighbour(index=j, label=y_train[j], distance=max(0.0, distance))
                for j, distance in zip(neighbours[n][:N_SHOWN], distances[n][:N_SHOWN], strict=True)
            ),
        )
        for n, (i, (cause, words)) in enumerate(zip(wrong, find_causes(evidence), strict=True))
    ]
    cases = most_instructive_first(cases)
    times = Counter(case.cause for case in cases)
    causes = tuple(Cause(name=rule.name, meaning=rule.meaning, times=times[rule.name]) for rule in CAUSES)
    run_logger().info(", ".join(f"{cause.name}: {cause.times}" for cause in causes))
    pictures = draw_cases(cases[:N_PICTURED], read_array(dataset.x_test), x_train)
    return Explanation(
        causes=causes,
        cases=put_bytes(".json", TypeAdapter(list[Case]).dump_json(cases)),
        images=put(".npy", lambda path: np.save(path, pictures)),
        suspects=put_bytes(".csv", suspects_csv(test.y, predictions, quality)),
        origin=origin(),
    )


def find_neighbours(
    model: Model, train: npt.NDArray[np.uint8], images: Images
) -> tuple[Distances, npt.NDArray[np.intp]]:
    """Find the ten nearest training images of some images, by the cosine distance of their features.

    Args:
        model: The model whose features count.
        train: The raw training images, of shape ``(n_train, height, width)``, at least ten.
        images: The images, float32 of shape ``(n, height, width, 1)``, in 0–1.

    Returns:
        Distances in 0–2 and indices of training images, the nearest first, both of shape ``(n, 10)``. If there are more
        training images than MNIST has, the nearest of a random sample.
    """
    keras = import_keras()
    import sklearn.preprocessing
    from sklearn.neighbors import NearestNeighbors

    network = load_model(model)
    features = keras.Model(network.inputs, network.layers[-1].input)

    def directions(some: Images) -> Images:
        seen = features.predict(some, batch_size=1000, verbose=0)
        of_length_1: Images = sklearn.preprocessing.normalize(seen, copy=False)
        return of_length_1

    searched = np.arange(len(train))
    if len(train) > N_SEARCHED:
        searched = np.sort(np.random.default_rng(0).choice(searched, N_SEARCHED, replace=False))
    # Between unit vectors, the squared distance is twice the cosine distance. Asked for cosine distances, scikit-learn
    # would keep all of them in memory at once.
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBOURS, metric="sqeuclidean", algorithm="brute")
    nearest.fit(directions(scale(train[searched])))
    squares, indices = nearest.kneighbors(directions(images))
    return squares / 2, searched[indices]


class Evidence(NamedTuple):
    """The evidence about the wrong predictions of a test set. Each array has a row per wrong prediction.

    Attributes:
        labels: The labels, of shape ``(n,)``.
        predictions: The predicted classes, of shape ``(n,)``.
        probabilities: The predicted probabilities, of shape ``(n, 10)``.
        quality: The quality of the labels by cleanlab's normalized margin, in 0–1, of shape ``(n,)``.
        agreeing: How many of the ten nearest training images have the predicted label, of shape ``(n,)``.
        distance: The mean distance to the three nearest training images, of shape ``(n,)``.
        far: The distance that counts as far. It is larger than that of 99 % of the images predicted right.
    """

    labels: Labels
    predictions: npt.NDArray[np.integer]
    probabilities: npt.NDArray[np.float64]
    quality: npt.NDArray[np.float64]
    agreeing: npt.NDArray[np.integer]
    distance: Distances
    far: float


def gather_evidence(
    labels: Labels,
    probabilities: npt.NDArray[np.float64],
    quality: npt.NDArray[np.float64],
    neighbours: npt.NDArray[Any],
    distances: Distances,
    usual_distances: Distances,
) -> Evidence:
    """Gather the evidence for the causes of a test set's wrong predictions.

    Args:
        labels: The labels of all wrong predictions, of shape ``(n,)``.
        probabilities: Their predicted probabilities, of shape ``(n, 10)``.
        quality: The quality of their labels by cleanlab's normalized margin, in 0–1, of shape ``(n,)``.
        neighbours: The labels of their ten nearest training images, of shape ``(n, 10)``.
        distances: The distances to those, of shape ``(n, 10)``.
        usual_distances: The same distances for images predicted right, of shape ``(m, 10)``.
    """
    predictions = probabilities.argmax(axis=1)
    usual = usual_distances[:, :N_SHOWN].mean(axis=1)
    return Evidence(
        labels=labels,
        predictions=predictions,
        probabilities=probabilities,
        quality=quality,
        agreeing=(neighbours == predictions[:, np.newaxis]).sum(axis=1),
        distance=distances[:, :N_SHOWN].mean(axis=1),
        far=float(np.quantile(usual, FAR)) if len(usual) else np.inf,
    )


def find_causes(evidence: Evidence) -> list[tuple[str, str]]:
    """Find the probable cause of each wrong prediction: its name, and the evidence for it in words."""
    found: list[tuple[str, str]] = [("", "")] * len(evidence.labels)
    for cause in reversed(CAUSES):  # the first cause that fits counts
        for n, words in cause.find(evidence).items():
            found[n] = (cause.name, words)
    return found


def _label_error(evidence: Evidence) -> dict[int, str]:
    e = evidence
    fits = (e.quality < MISLABELLED) & (e.agreeing >= AGREEING) & (e.distance <= e.far)
    return {
        n: f"{e.probabilities[n, e.predictions[n]]:.1%} for {e.predictions[n]}, "
        f"{e.probabilities[n, e.labels[n]]:.1%} for the label; {e.agreeing[n]} of the {N_NEIGHBOURS} nearest training "
        f"images are labelled {e.predictions[n]}"
        for n in np.flatnonzero(fits).tolist()
    }


def _ambiguous(evidence: Evidence) -> dict[int, str]:
    e = evidence
    classes = np.argsort(e.probabilities, axis=1)[:, ::-1]
    first, second = np.take_along_axis(e.probabilities, classes[:, :2], axis=1).T
    return {
        n: f"{first[n]:.0%} for {classes[n, 0]}, {second[n]:.0%} for {classes[n, 1]}"
        for n in np.flatnonzero(second >= AMBIGUOUS * first).tolist()
    }


def _confusable_pair(evidence: Evidence) -> dict[int, str]:
    # A label that is probably wrong says nothing about the pair of classes.
    kept = [n for n in range(len(evidence.labels)) if n not in _label_error(evidence)]
    systematic = find_systematic_pairs(evidence.labels[kept], evidence.predictions[kept])
    words = {}
    for n in kept:
        pair = frozenset((int(evidence.labels[n]), int(evidence.predictions[n])))
        if pair in systematic:
            times, p = systematic[pair]
            low, high = sorted(pair)
            words[n] = f"{low} and {high} are taken for each other {times} times (corrected p = {p:.2g})"
    return words


def _atypical(evidence: Evidence) -> dict[int, str]:
    return {
        n: f"its nearest training images are {evidence.distance[n]:.3f} away; of the images predicted right, "
        f"{FAR:.0%} have theirs within {evidence.far:.3f}"
        for n in np.flatnonzero(evidence.distance > evidence.far).tolist()
    }


def _unexplained(evidence: Evidence) -> dict[int, str]:
    sure = evidence.probabilities.max(axis=1)
    return {
        n: f"{sure[n]:.0%} for {evidence.predictions[n]}, and nothing unusual about the image"
        for n in range(len(evidence.labels))
    }


class CauseRule(NamedTuple):
    """A cause, and how it is found.

    Attributes:
        name: The name of the cause.
        meaning: What it means, in words.
        find: Finds the wrong predictions that it fits. Returns the evidence in words, by row.
    """

    name: str
    meaning: str
    find: Callable[[Evidence], dict[int, str]]


# The first cause that fits counts. To add a cause, write a function above and a line here.
CAUSES = (
    CauseRule(
        "label error",
        "the label is probably wrong: model and nearest training images agree on another digit",
        _label_error,
    ),
    CauseRule("ambiguous", "two digits are nearly equally probable", _ambiguous),
    CauseRule("confusable pair", "one of two digits that the model often takes for each other", _confusable_pair),
    CauseRule("atypical", "far from all training images", _atypical),
    CauseRule("unexplained", "none of these", _unexplained),
)


def find_systematic_pairs(labels: Labels, predictions: npt.NDArray[Any]) -> dict[Pair, tuple[int, float]]:
    """Find the pairs of classes that are taken for each other more often than by chance.

    Args:
        labels: The labels of wrong predictions, of shape ``(n,)``.
        predictions: The classes predicted, of shape ``(n,)``.

    Returns:
        By pair: how often it occurs, and the one-sided p-value against errors that are spread evenly over the 45 pairs,
        corrected for all pairs after Benjamini and Hochberg.
    """
    from scipy.stats import binomtest, false_discovery_control

    times = Counter(frozenset((int(a), int(b))) for a, b in zip(labels, predictions, strict=True))
    n_pairs = N_CLASSES * (N_CLASSES - 1) // 2
    p_values = [binomtest(n, len(labels), 1 / n_pairs, "greater").pvalue for n in times.values()]
    corrected = false_discovery_control([*p_values, *[1.0] * (n_pairs - len(times))])
    return {
        pair: (n, float(p)) for (pair, n), p in zip(times.items(), corrected, strict=False) if p <= FALSE_DISCOVERIES
    }


def most_instructive_first(cases: list[Case]) -> list[Case]:
    """Sort the cases so that the first screen shows the clearest of each cause; first, what the champion had right."""
    clearest = sorted(cases, key=lambda case: (case.status == "shared", -case.guesses[0].probability, case.index))
    by_cause = [[case for case in clearest if case.cause == rule.name] for rule in CAUSES]
    return [case for row in zip_longest(*by_cause) for case in row if case is not None]


def draw_cases(
    cases: list[Case], x_test: npt.NDArray[np.uint8], x_train: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """The raw images of some cases: each one's own and its neighbours', of shape ``(n, 4, height, width)``."""
    rows = [[x_test[case.index], *(x_train[near.index] for near in case.neighbours)] for case in cases]
    return np.array(rows, np.uint8).reshape(len(cases), 1 + N_SHOWN, *x_test.shape[1:])


def suspects_csv(labels: Labels, predictions: npt.NDArray[Any], quality: npt.NDArray[np.float64]) -> bytes:
    """The test images whose labels look most wrong, whether predicted right or wrong, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "prediction", "quality"])
    for i in np.argsort(quality, kind="stable")[:N_SUSPECTS]:
        writer.writerow([i, labels[i], predictions[i], f"{quality[i]:.6f}"])
    return text.getvalue().encode()
