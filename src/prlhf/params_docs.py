"""docs/parameters.md, rendered from the typed parameters, params.yaml and dvc.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from prlhf import dag
from prlhf.params.describe import annotation_doc, keys_of, range_of, type_of
from prlhf.params.loading import PARAMS_FILE, load
from prlhf.params.schema import Params

INTRODUCTION = """\
# Parameters

<!-- Written by `prlhf params docs` from the typed parameters: edit src/prlhf/params/ instead. -->

Everything that can be set stands in `params.yaml`, and every key must be there. The defaults below
are those of the committed file. `prlhf params check` verifies a file without running anything, and
every stage does so before it starts. Beside each section stand the stages that read it: a changed
value re-runs those stages and what follows them.
"""


def render(params_path: Path = PARAMS_FILE, dvc_path: Path = dag.DVC_FILE) -> str:
    """The reference as Markdown.

    Args:
        params_path: The file whose values are shown as defaults.
        dvc_path: The pipeline that says which stage reads which section.

    Raises:
        UserError: One of the files is missing or has faults.
    """
    defaults = load(params_path).model_dump(by_alias=True)
    readers = dag.readers(dvc_path)
    parts = [INTRODUCTION]
    for name, field in (keys_of(Params) or {}).items():
        parts.append(f"\n## {name}\n")
        parts.append(f"{annotation_doc(field)}\n")
        stages = ", ".join(f"`{stage}`" for stage in readers.get(name, []))
        parts.append(f"Read by: {stages or 'no stage'}.\n")
        parts.append("| Key | Default | Type | Range | Meaning |")
        parts.append("|---|---|---|---|---|")
        parts += [_row(*entry) for entry in _leaves(name, field, defaults[name])]
        parts.append("")
    return "\n".join(parts).rstrip().replace("\n\n\n", "\n\n") + "\n"


def _leaves(key: str, field: FieldInfo, default: Any) -> Iterator[tuple[str, FieldInfo, Any]]:
    keys: Mapping[str, FieldInfo] | None = keys_of(field.annotation)
    if keys is None:
        yield key, field, default
        return
    for name, value in default.items():
        yield from _leaves(f"{key}.{name}", keys[name], value)


def _row(key: str, field: FieldInfo, default: Any) -> str:
    cells = [
        f"`{key}`",
        f"`{_yaml(default)}`",
        type_of(field.annotation),
        range_of(field),
        field.description or "",
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
