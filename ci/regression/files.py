"""JSON objects on disk: written whole or not at all, read with a sentence where they are torn."""

import json
from pathlib import Path
from typing import Any

from .errors import Refused


def write_object(path: Path, content: dict[str, Any]) -> Path:
    torn = path.with_suffix(path.suffix + ".torn")
    torn.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return torn.replace(path)


def read_object(path: Path, instead: str) -> dict[str, Any]:
    """Raises Refused, which ends in what to do `instead`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(f"{path}: cannot be read: {why}; {instead}") from None
    if not isinstance(found, dict):
        raise Refused(f"{path}: a {type(found).__name__}, not an object; {instead}")
    return found
