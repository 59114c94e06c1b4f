"""Stage `report`: one self-contained HTML file from what the earlier stages reported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from prlhf import __version__
from prlhf.infra.io import read_json, write_text
from prlhf.infra.tables import read_csv
from prlhf.report import page
from prlhf.stages import paths

PARAMS: Final[tuple[str, ...]] = ()
"""None: params.yaml is shown as it stands, and is a dependency of the stage as a file."""

TEXTS: Final = ("user_id", "group", "method", "split")
"""The columns of tables that hold texts."""


def run() -> None:
    """Write reports/report.html."""
    inputs = page.Inputs(
        metrics=read_json(paths.METRICS),
        evaluation=read_json(paths.EVALUATION),
        users=read_csv(paths.PLOTS / "per_user_accuracy.csv", TEXTS),
        lengths=read_csv(paths.PLOTS / "lengths.csv", TEXTS),
        embeddings=read_csv(paths.PLOTS / "embeddings.csv", TEXTS),
        curves={path.stem: read_csv(path, TEXTS) for path in sorted(paths.CURVES.glob("*.csv"))},
        accounts={path.stem: read_json(path) for path in sorted(paths.CURVES.glob("*.json"))},
        validation=read_json(paths.VALIDATION) if paths.VALIDATION.exists() else None,
        reference=read_json(paths.REFERENCE_REPORT) if paths.REFERENCE_REPORT.exists() else None,
        pretrain=read_json(paths.PRETRAIN) if paths.PRETRAIN.exists() else None,
        params=_read_yaml(paths.PARAMETERS),
        # Not a dependency: DVC writes it while the pipeline runs. Its hashes are those of files
        # that the report depends on, directly or through other stages.
        lock=_read_yaml(paths.LOCK).get("stages", {}),
        version=__version__,
    )
    write_text(paths.REPORT, page.render(inputs))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
