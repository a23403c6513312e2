"""The Jinja environments of all pages. Every value that a template prints is escaped, for HTML or for Markdown."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from artifacts.markdown import escape_markdown
from artifacts.store import StoredFile


def _data_uri(picture: StoredFile | bytes) -> str:
    content = picture.read_bytes() if isinstance(picture, StoredFile) else picture
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def plural(count: int, noun: str) -> str:
    """A number and its noun, e.g. ``1 run`` or ``1,000 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escape_value(value: Any) -> Any:
    # Markup comes from a macro, which has escaped its values.
    return value if isinstance(value, Markup) else Markup(escape_markdown(value))  # noqa: S704


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= {"data_uri": _data_uri, "plural": plural, "text": _text, "utc": _utc}
    return environment


HTML = _environment()
MARKDOWN = _environment(finalize=_escape_value)
