"""JSON with its SHA-256 in front. Prefect keeps the results of steps in this form, so that altered ones are noticed.

Prefect's JSON serializer accepts any module with these two functions.
"""

import hashlib
import json
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Write a value as JSON, see `json.dumps`."""
    text = json.dumps(value, **options)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def loads(sealed: str, **options: Any) -> Any:
    """Read what `dumps` wrote, see `json.loads`.

    Raises:
        ValueError: Raised if it was altered.
    """
    digest, _, text = sealed.partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("its bytes don't match the digest in front of them")
    return json.loads(text, **options)
