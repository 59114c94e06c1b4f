"""What dvc.yaml declares, as far as the parameters are concerned."""

from __future__ import annotations

from pathlib import Path

from prlhf.params.loading import read_yaml

DVC_FILE = Path("dvc.yaml")


def readers(path: Path = DVC_FILE) -> dict[str, list[str]]:
    """Section of params.yaml -> the stages that depend on it, in the pipeline's order."""
    found: dict[str, list[str]] = {}
    for name, stage in read_yaml(path)["stages"].items():
        for key in stage.get("params", []):
            found.setdefault(str(key).partition(".")[0], []).append(str(name))
    return found
