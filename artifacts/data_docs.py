"""Data Docs: GX's own rendering of validation results, on one page that needs no network.

The page that GX puts around it is replaced. It would load styles, icons and scripts from CDNs, and it shows neither the
severity of an expectation nor the rows that break it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from artifacts.records.data import Outcome

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data Docs</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --unsure: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #f85149; --unsure: #d29922; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
section > div { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .7rem; text-align: left; vertical-align: top; }
th { font-size: .85rem; } td { font-variant-numeric: tabular-nums; } td br { display: none; }
td table { width: auto; margin: .3rem 0 0; font-size: .85rem; } td strong { display: block; font-weight: 500; }
.text-success { color: var(--good); } .text-danger { color: var(--bad); } .unsure { color: var(--unsure); }
.fa-check-circle::before { content: "✓"; } .fa-times::before { content: "✗"; } i { font-style: normal; }
</style>
</head>
<body>
<h1>Data Docs</h1>
<p>{{ outcomes | length - broken | length }} of {{ outcomes | length }} expectations are met.</p>
{% if broken %}
<ul>
{% for o in broken %}
<li><strong class="{{ 'text-danger' if o.severity == 'error' else 'unsure' }}">{{ o.severity }}</strong>
{{ o.table }}{% if o.column %}, column {{ o.column }}{% endif %}: {{ o.meaning }} Observed: {{ o.observed }}.</li>
{% endfor %}
</ul>
{% endif %}
{% for name, table in tables %}
<section>
<h2>{{ name | capitalize }}</h2>
{{ table | safe }}
</section>
{% endfor %}
<p>Checked with Great Expectations {{ version }}.</p>
</body>
</html>
"""


def render(results: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> str:
    """Draw the page.

    Args:
        results: GX's validation results as JSON, one per table.
        outcomes: The outcomes of all their expectations, in the same order.

    Returns:
        The HTML of the page. Equal results give equal pages.
    """
    broken = [outcome for outcome in outcomes if not outcome.success]
    tables = []
    for i, result in enumerate(results):
        name = result["suite_name"]
        tables.append((name, _table(f"{i}", result, [outcome for outcome in outcomes if outcome.table == name])))
    page = Environment(autoescape=True).from_string(PAGE)
    version = results[0]["meta"]["great_expectations_version"]
    return page.render(outcomes=outcomes, broken=broken, tables=tables, version=version)


def _table(element_id: str, result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """GX's table of one validation result as HTML, plus the columns that GX leaves out."""
    from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
    from great_expectations.render.renderer.content_block import ValidationResultsTableContentBlockRenderer
    from great_expectations.render.view.view import DefaultJinjaComponentView

    loaded = expectationSuiteValidationResultSchema.load(result)
    block = ValidationResultsTableContentBlockRenderer.render(loaded.results)
    block.header_row += ["Column", "Severity", "Sample rows"]
    for row, outcome in zip(block.table, outcomes, strict=True):
        row += [outcome.column or "", outcome.severity, ", ".join(map(str, outcome.sample_indices))]
    html: str = DefaultJinjaComponentView().render(
        {"content_block": block.to_json_dict(), "content_block_loop": {"index": element_id}}
    )
    return html
