"""The page: tables between markers, the numbers as JSON and a plot beside it; prose stays."""

from __future__ import annotations
from pathlib import Path
from typing import Any
def training_table(result: dict[str, Any]) -> str:
    import json
    return json.dumps(result, indent=1)
def publish(out: Path, name: str, result: dict[str, Any]) -> None: ...
