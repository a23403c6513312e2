"""Markdown: escape text that comes from elsewhere."""

import re


def escape_markdown(value: object) -> str:
    """Escape text for a line of Markdown or the cell of a table, so that it is shown as it is and has no effect."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no emphasis, so names stay readable in the plain text.
    return re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
