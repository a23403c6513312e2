"""The report in a real browser: it needs no network, its filter works without a script, it prints."""

import pytest
from playwright.sync_api import Page, expect

from artifacts import report
from tests.artifacts.test_report import make_run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_HOME", str(tmp_path_factory.mktemp("home")))
        file = tmp_path_factory.mktemp("report") / "report.html"
        file.write_text(report.report_html(make_run(200)))
        return file


@pytest.fixture
def page(browser, file):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    yield page
    context.close()


def shown(page: Page) -> int:
    return page.locator(".case:visible").count()


def test_it_opens_fast_with_all_its_pictures(page, file, screenshots):
    assert file.stat().st_size < 3_000_000
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < timing < 3000  # milliseconds
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert shown(page) == 200
    page.screenshot(path=screenshots / "report.png", full_page=True)


def test_the_filter_leaves_what_is_chosen(page):
    page.get_by_label("Label", exact=True).select_option("3")
    assert shown(page) == 20
    assert set(page.locator(".case:visible").evaluate_all("cases => cases.map(one => one.dataset.label)")) == {"3"}
    page.get_by_label("Prediction", exact=True).select_option("5")  # a 3 is taken for a 4 here
    assert shown(page) == 0
    page.get_by_role("button", name="Show all").click()
    assert shown(page) == 200
    page.get_by_label("Cause", exact=True).select_option("atypical")
    assert shown(page) == 0
    page.get_by_label("Cause", exact=True).select_option("ambiguous")
    assert shown(page) == 200


def test_the_filter_works_by_keyboard(page):
    page.get_by_label("Label", exact=True).focus()
    page.keyboard.press("7")
    assert shown(page) == 20
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prediction", exact=True)).to_be_focused()


def test_the_contents_lead_to_each_part(page):
    for link in page.locator("nav a").all():
        link.click()
        expect(page.locator(link.get_attribute("href"))).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page, scheme, screenshots):
    page.emulate_media(color_scheme=scheme)
    page.screenshot(path=screenshots / f"report-{scheme}.png")
    weak = page.evaluate(CONTRAST)
    assert weak == []


def test_it_prints_every_case(page, screenshots):
    printed = page.pdf(path=screenshots / "report.pdf")
    assert len(printed) > 100_000
    page.emulate_media(media="print")
    assert shown(page) == 200
    expect(page.locator("nav")).to_be_hidden()


# WCAG's contrast of each text with the first opaque background behind it; AA asks for 4.5.
CONTRAST = """() => {
  const parse = text => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    return numbers.length < 4 ? [...numbers, 1] : numbers;
  };
  const linear = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = colour =>
    [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(colour[i] / 255), 0);
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const weak = new Set();
  for (const element of document.querySelectorAll('body *')) {
    const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.textContent.trim());
    if (!texts.length || !element.checkVisibility()) continue;
    const [a, b] = [parse(getComputedStyle(element).color), background(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.add(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...weak];
}"""
