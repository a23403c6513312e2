"""Check labels: find training labels that look wrong to a model that never saw those images."""

import csv
import io

import numpy as np
import numpy.typing as npt
from prefect import task

from artifacts.dataset import Split, load_train, read_array
from artifacts.errors import DataError
from artifacts.records.data import N_CLASSES, Dataset, LabelCheck
from artifacts.store import put, put_bytes
from tasks.model.calibration import apply_temperature, fit_temperature
from tasks.model.checkpoint import Checkpoint
from tasks.model.fit import build, fit
from tasks.model.recipe import TrainParameters, dtype_policy
from tasks.model.saved import import_keras
from tasks.running.cache import StepCache, origin
from tasks.running.logs import Progress, run_logger

# Two models, each trained on half of the images for one epoch, cost less than one default training. The step depends
# only on the data, so it runs once for all recipes.
RECIPE = TrainParameters(epochs=1, batch_size=128, validations_per_epoch=1)
N_MONITORED = 500
N_PICTURED = 24


def _arithmetic(dataset: Dataset) -> dict[str, str]:
    del dataset
    return {"arithmetic": dtype_policy(RECIPE)}


@task(
    name="check-labels",
    cache_policy=StepCache(libraries=("cleanlab", "keras", "numpy", "scikit-learn", "tensorflow"), reads=_arithmetic),
)
def check_labels(dataset: Dataset) -> LabelCheck:
    """Train on each half of the training images, predict the other half, and let cleanlab find improbable labels.

    Raises:
        DataError: Raised if a class has fewer than two training images.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    train = load_train(dataset)
    probabilities = predict_out_of_sample(train)
    labels = train.y.astype(int)
    suspect = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(quality[wrong], kind="stable")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "prediction", "quality", "suspect"])
    for i in wrong:
        writer.writerow([i, labels[i], predictions[i], f"{quality[i]:.6f}", bool(suspect[i])])
    run_logger().info(f"{int(suspect.sum())} of {len(labels):,} training labels look wrong")
    return LabelCheck(
        data_digest=dataset.digest,
        n_wrong=len(wrong),
        n_suspects=int(suspect[wrong].sum()),
        csv=put_bytes(".csv", text.getvalue().encode()),
        images=put(".npy", lambda path: np.save(path, read_array(dataset.x_train)[wrong[:N_PICTURED]])),
        origin=origin(),
    )


def predict_out_of_sample(train: Split) -> npt.NDArray[np.float64]:
    """Probabilities of shape ``(n, 10)`` for the training images, each by the model that was trained on the other half.

    Raises:
        DataError: Raised if a class has fewer than two images.
    """
    keras = import_keras()
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(train.y, minlength=N_CLASSES)
    if counts.min() < 2:
        raise DataError(f"class {counts.argmin()} has {counts.min()} training images; at least 2 are needed")
    probabilities = np.empty((len(train.y), N_CLASSES), np.float32)
    progress = Progress(2)
    for rest, held_out in StratifiedKFold(2, shuffle=True, random_state=0).split(train.y, train.y):
        keras.utils.clear_session()
        model = build(RECIPE.network, dtype_policy(RECIPE), RECIPE.seed)
        unseen = Split(train.x[held_out], train.y[held_out])
        monitored = Split(unseen.x[:N_MONITORED], unseen.y[:N_MONITORED])
        fit(model, Split(train.x[rest], train.y[rest]), monitored, RECIPE, Checkpoint(None), progress)
        probabilities[held_out] = model.predict(unseen.x, batch_size=1000, verbose=0)
    return apply_temperature(probabilities, fit_temperature(train.y, probabilities))
