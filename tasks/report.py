"""Report: draw the pictures of a model's evaluation. Publish shows them on the run's page and in its folder."""

from prefect import task
from pydantic import TypeAdapter

from artifacts.dataset import load_test, read_array
from artifacts.pictures import PICTURES, Shown, wrong_predictions_csv
from artifacts.records.data import Dataset
from artifacts.records.evaluation import Case, Evaluation, Explanation, Report, Robustness
from artifacts.records.model import Training
from artifacts.store import put_bytes
from tasks.model.calibration import apply_temperature
from tasks.running.cache import StepCache, origin


@task(name="report", cache_policy=StepCache(libraries=("matplotlib", "numpy", "pillow", "scipy")))
def draw_report(
    dataset: Dataset,
    training: Training,
    evaluation: Evaluation,
    robustness: Robustness,
    explanation: Explanation,
    rival: Evaluation | None,
    rival_robustness: Robustness | None,
) -> Report:
    """Draw the pictures of a model, and list its wrong predictions as CSV.

    If the model was compared with a champion, also draw the images that only one of the two has right.
    """
    probabilities = read_array(evaluation.probabilities)
    shown = Shown(
        test=load_test(dataset),
        training=training,
        evaluation=evaluation,
        probabilities=probabilities,
        uncalibrated=apply_temperature(probabilities, 1 / training.temperature),
        robustness=robustness,
        cases=TypeAdapter(list[Case]).validate_json(explanation.cases.read_bytes()),
        rival_predictions=read_array(rival.probabilities).argmax(axis=1) if rival else None,
        rival_robustness=rival_robustness,
    )
    drawn = {name: picture.draw(shown) for name, picture in PICTURES.items()}
    return Report(
        pictures={name: put_bytes(".png", content) for name, content in drawn.items() if content is not None},
        wrong_predictions_csv=put_bytes(".csv", wrong_predictions_csv(shown.cases, probabilities)),
        origin=origin(),
    )
