"""What a person does in the Prefect UI: fill the form, watch the run, read each artifact."""

import json
import re
import time

import pytest
from playwright.sync_api import Page, expect

PICTURE = "img[src^='data:image/png']"
PICTURES = {
    "learning-curves": 1,
    "confusion-matrix": 1,
    "wrong-predictions": 1,
    "robustness": 1,
    "confidence": 1,
}
ROWS = {
    "summary": "accurate enough",
    "data-validation": "train images",
    "learning-curves": "val_accuracy",
    "confusion-matrix": "Recall",
    "wrong-predictions": "unexplained",
    "robustness": "rotated by 15°",
    "model-card": "Latency",
    "lineage": "git revision",
}

PRESET = """
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
with get_client(sync_client=True) as client:
    deployment = client.read_deployment_by_name("mnist/train")
    client.update_deployment(deployment.id, DeploymentUpdate(parameters=%r))
    print(deployment.id)
"""
READ = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
only = FlowRunFilter(id={"any_": ["%s"]})
with get_client(sync_client=True) as client:
    run = client.read_flow_runs(flow_run_filter=only)[0]
    artifacts = client.read_artifacts(flow_run_filter=only)
    found = {a.key: str(a.id) for a in artifacts if a.key}
    print(json.dumps({"state": run.state.name, "train": run.parameters["train"], "artifacts": found}))
"""


@pytest.fixture(scope="module")
def run(ui: Page, deployed, sample_parameters, screenshots):
    """A run of the sample, started from the UI's form and watched on its page."""
    deployment = deployed.python(PRESET % sample_parameters).strip()
    ui.goto(f"{deployed.ui}/v2/deployments/deployment/{deployment}/run")
    submit = ui.get_by_role("button", name="Submit")
    expect(submit).to_be_visible()
    expect(ui.get_by_text("Passes over the training images. A part of a pass is allowed.")).to_be_visible()
    ui.screenshot(path=screenshots / "form.png", full_page=True)
    submit.click()
    ui.wait_for_url(re.compile("flow-run/|deployment/[^/]+$"))
    identifier = newest_run(deployed)
    deadline = time.monotonic() + 200
    while (found := json.loads(deployed.python(READ % identifier)))["state"] not in ("Completed", "Failed", "Crashed"):
        assert time.monotonic() < deadline, found
        time.sleep(2)
    assert found["state"] == "Completed"
    # What the form sends outweighs a preset: only what was filled in.
    assert found["train"] == {"preset": "fast"} | sample_parameters["train"]
    return {"id": identifier, "artifacts": found["artifacts"]}


def newest_run(deployed):
    return deployed.python(
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as c:\n"
        "    print(c.read_flow_runs(limit=1, sort='EXPECTED_START_TIME_DESC')[0].id)"
    ).strip()


def test_the_runs_page_shows_its_steps_and_artifacts(ui, deployed, run, screenshots):
    ui.goto(f"{deployed.ui}/v2/runs/flow-run/{run['id']}?tab=Artifacts")
    for key in ROWS:
        expect(ui.get_by_text(key, exact=True).first).to_be_visible()
    ui.screenshot(path=screenshots / "run.png")


@pytest.mark.parametrize("key", ROWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_artifact_shows_its_pictures_and_rows(key, scheme, ui, deployed, run, screenshots):
    ui.emulate_media(color_scheme=scheme)
    ui.evaluate("theme => localStorage.setItem('theme', theme)", scheme)
    ui.goto(f"{deployed.ui}/v2/artifacts/artifact/{run['artifacts'][key]}")
    cell = ui.locator("td, th").filter(has_text=ROWS[key]).first
    expect(cell).to_be_visible()
    # Sharp on a high-density screen: two pixels of the file for one of the page. Asked in one go: the UI draws its
    # Markdown more than once, and a picture that was found is gone a moment later.
    sharp = "i => i.complete && i.clientWidth > 0 && i.naturalWidth >= 2 * Math.min(i.clientWidth, 500)"
    found = f"[...document.querySelectorAll(`{PICTURE}`)].filter({sharp}).length"
    ui.wait_for_function(f"{found} === {PICTURES.get(key, 0)}")
    ui.screenshot(path=screenshots / f"artifact-{key}-{scheme}.png", full_page=True)


def test_the_lineage_is_drawn(ui, deployed, run):
    ui.goto(f"{deployed.ui}/v2/artifacts/artifact/{run['artifacts']['lineage']}")
    diagram = ui.locator("svg[id^=mermaid]")
    expect(diagram).to_be_visible()
    for name in ("data", "code", "parameters", "model", "version"):
        expect(diagram.locator(".node").filter(has_text=name)).to_be_visible()


def test_the_summary_leads_to_the_report_and_the_version(ui, browser, deployed, run, screenshots):
    ui.goto(f"{deployed.ui}/v2/artifacts/artifact/{run['artifacts']['summary']}")
    user, password = (deployed.home / "secret").read_text().strip().split(":")
    signed_in = browser.new_context(http_credentials={"username": user, "password": password})
    page = signed_in.new_page()
    page.goto(ui.get_by_role("link", name="the report").get_attribute("href"))
    expect(page.get_by_role("heading", name="Wrong predictions")).to_be_visible()
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    page.get_by_label("Cause", exact=True).select_option("ambiguous")
    assert set(page.locator(".case:visible").evaluate_all("c => c.map(one => one.dataset.cause)")) <= {"ambiguous"}
    page.goto(ui.get_by_role("link", name="in MLflow").get_attribute("href"))
    expect(page.get_by_text("Registered At").or_(page.get_by_text("Created")).first).to_be_visible(timeout=20_000)
    page.screenshot(path=screenshots / "mlflow.png")
    signed_in.close()
