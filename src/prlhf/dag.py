"""What dvc.yaml declares, as far as the parameters are concerned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf.errors import UserError, UserErrors
from prlhf.params.loading import read_yaml

if TYPE_CHECKING:
    from prlhf.params import Params

DVC_FILE = Path("dvc.yaml")


def readers(path: Path = DVC_FILE) -> dict[str, list[str]]:
    """Section of params.yaml -> the stages that depend on it, in the pipeline's order."""
    found: dict[str, list[str]] = {}
    for name, stage in read_yaml(path)["stages"].items():
        for key in stage.get("params", []):
            found.setdefault(str(key).partition(".")[0], []).append(str(name))
    return found


def check_methods(params: Params, path: Path = DVC_FILE) -> None:
    """Compare the methods in params.yaml with those that dvc.yaml runs.

    Raises:
        UserErrors: A method would be left out in silence, or is run without parameters.
    """
    document = read_yaml(path)
    lists: dict[str, Any] = {}
    for entry in document.get("vars", []):
        lists.update(entry)
    wanted = {"trained": list(params.methods), "compared": ["base", *params.methods]}
    faults = [
        UserError(
            f"is {listed(lists.get(name, []))}, but the methods in params.yaml make it "
            f"{listed(methods)}",
            where=f"{path}: vars.{name}",
            fix="list the same methods in both files",
        )
        for name, methods in wanted.items()
        if sorted(lists.get(name, [])) != sorted(methods)
    ]
    if faults:
        raise UserErrors(faults)


def listed(names: list[str]) -> str:
    return f"[{', '.join(map(str, names))}]"
