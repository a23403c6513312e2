"""Report: the pictures and tables of a model's evaluation; publish puts them on the run's page and in its folder."""

from prefect import task
from pydantic import TypeAdapter

from artifacts import figures
from artifacts.dataset import load_test, read_array
from artifacts.records import Case, Dataset, Evaluation, Explanation, Report, Robustness, Training
from artifacts.store import put_bytes
from tasks.caching import StepCache, origin
from tasks.train import apply_temperature


@task(name="report", cache_policy=StepCache(libraries=("matplotlib", "numpy", "pillow", "scipy")))
def draw_report(
    dataset: Dataset,
    training: Training,
    evaluation: Evaluation,
    robustness: Robustness,
    explanation: Explanation,
    champion: Evaluation | None,
    champion_robustness: Robustness | None,
) -> Report:
    """Draw what there is to see of a model, and list its wrong predictions as CSV.

    If there is a champion to compare with, draw also what only one of the two has right.
    """
    test, probabilities = load_test(dataset), read_array(evaluation.probabilities)
    cases = TypeAdapter(list[Case]).validate_json(explanation.cases.read_bytes())
    disagreements = None
    if champion is not None:
        rival = read_array(champion.probabilities).argmax(axis=1)
        picture = figures.disagreements(test.x, test.y, probabilities.argmax(axis=1), rival)
        disagreements = put_bytes(".png", picture)
    return Report(
        learning_curves=put_bytes(".png", figures.learning_curves(training.history)),
        confusion_matrix=put_bytes(".png", figures.confusion_matrix(evaluation.confusion_matrix)),
        wrong_predictions=put_bytes(".png", figures.wrong_predictions(test.x, cases)),
        wrong_predictions_csv=put_bytes(".csv", figures.wrong_predictions_csv(cases, probabilities)),
        robustness=put_bytes(
            ".png", figures.robustness(robustness.slices, champion_robustness.slices if champion_robustness else ())
        ),
        confidence=put_bytes(
            ".png",
            figures.confidence(
                test.y,
                probabilities,
                apply_temperature(probabilities, 1 / training.temperature),
                evaluation.n_for_a_person,
            ),
        ),
        disagreements=disagreements,
        origin=origin(),
    )
