"""Markdown: escapes text from elsewhere."""

import re


def escape_markdown(value: object) -> str:
    """Escape text for a line of Markdown or a table's cell, so that it shows as it is and does nothing else."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no emphasis: names stay readable in the plain text.
    return re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
