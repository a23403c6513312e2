"""Report: the pictures and tables of a model's evaluation; publish puts them on the run's page and in its folder."""

from prefect import task

from artifacts import figures
from artifacts.dataset import load_test, read_array
from artifacts.records import Dataset, Evaluation, Report, Training
from artifacts.store import put_bytes
from tasks.caching import StepCache, origin


@task(name="report", cache_policy=StepCache(libraries=("matplotlib", "numpy", "pillow")))
def draw_report(dataset: Dataset, training: Training, evaluation: Evaluation, champion: Evaluation | None) -> Report:
    """Draw the learning curves, the confusion matrix and the wrong predictions, and list those as CSV.

    If there is a champion to compare with, draw also what only one of the two has right.
    """
    test, probabilities = load_test(dataset), read_array(evaluation.probabilities)
    disagreements = None
    if champion is not None:
        rival = read_array(champion.probabilities).argmax(axis=1)
        picture = figures.disagreements(test.x, test.y, probabilities.argmax(axis=1), rival)
        disagreements = put_bytes(".png", picture)
    return Report(
        learning_curves=put_bytes(".png", figures.learning_curves(training.history)),
        confusion_matrix=put_bytes(".png", figures.confusion_matrix(evaluation.confusion_matrix)),
        wrong_predictions=put_bytes(
            ".png",
            figures.wrong_predictions(test.x, test.y, probabilities.argmax(axis=1), probabilities.max(axis=1)),
        ),
        wrong_predictions_csv=put_bytes(".csv", figures.wrong_predictions_csv(test.y, probabilities)),
        disagreements=disagreements,
        origin=origin(),
    )
