"""Stage `report`: one self-contained HTML file from what the earlier stages reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf import __version__
from prlhf.evaluation.report import Inputs, render
from prlhf.io import read_json, write_text

if TYPE_CHECKING:
    import pandas as pd

PARAMS: tuple[str, ...] = ()
"""None: params.yaml is shown as it stands, and is a dependency of the stage as a file."""

REPORTS = Path("reports")
PARAMETERS = Path("params.yaml")
LOCK = Path("dvc.lock")


def run() -> None:
    """Write reports/report.html."""
    plots = REPORTS / "plots"
    inputs = Inputs(
        metrics=read_json(REPORTS / "metrics.json"),
        evaluation=read_json(REPORTS / "evaluation.json"),
        users=_read_csv(plots / "per_user_accuracy.csv"),
        lengths=_read_csv(plots / "lengths.csv"),
        embeddings=_read_csv(plots / "embeddings.csv"),
        curves={path.stem: _read_csv(path) for path in sorted((REPORTS / "curves").glob("*.csv"))},
        validation=_optional(REPORTS / "validation.json"),
        pretrain=_optional(REPORTS / "pretrain.json"),
        params=_read_yaml(PARAMETERS),
        # Not a dependency: DVC writes it while the pipeline runs. Its hashes are those of files
        # that the report depends on, directly or through other stages.
        lock=_read_yaml(LOCK).get("stages", {}),
        version=__version__,
    )
    write_text(REPORTS / "report.html", render(inputs))


def _optional(path: Path) -> Any | None:
    return read_json(path) if path.exists() else None


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    from prlhf.errors import UserError

    if not path.exists():
        raise UserError("no such file", where=path, fix="`dvc repro` makes what is missing")
    # Names such as "NA" or "007" are text, and nothing is missing but what is empty.
    texts = dict.fromkeys(("user_id", "group", "method", "split"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def _read_yaml(path: Path) -> Mapping[str, Any]:
    from ruamel.yaml import YAML

    if not path.exists():
        return {}
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
