"""docs/parameters.md, rendered from the typed parameters and dvc.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from prlhf import dag
from prlhf.params.describe import ANY_KEY, annotation_doc, keys_of, range_of, type_of
from prlhf.params.schema import Params

INTRODUCTION = """\
# Parameters

<!-- Written by `prlhf params docs` from the typed parameters: edit src/prlhf/params/ instead. -->

Everything that can be set stands in `params.yaml` with its value, and every key must be there:
there are no defaults besides that file. `prlhf params check` verifies a file without running
anything, and every stage does so before it starts. Beside each section stand the stages that read
it: a changed value re-runs those stages and what follows them.
"""


def render(dvc_path: Path = dag.DVC_FILE) -> str:
    """The reference as Markdown.

    Args:
        dvc_path: The pipeline that says which stage reads which section.

    Raises:
        UserError: The file is missing or has faults.
    """
    readers = dag.readers(dvc_path)
    parts = [INTRODUCTION]
    for name, field in (keys_of(Params) or {}).items():
        parts.append(f"\n## {name}\n")
        parts.append(f"{annotation_doc(field)}\n")
        stages = ", ".join(f"`{stage}`" for stage in readers.get(name, []))
        parts.append(f"Read by: {stages or 'no stage'}.\n")
        parts.append("| Key | Type | Range | Meaning |")
        parts.append("|---|---|---|---|")
        parts += [_row(*entry) for entry in _leaves(name, field)]
        parts.append("")
    return "\n".join(parts).rstrip().replace("\n\n\n", "\n\n") + "\n"


def _leaves(key: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    keys = keys_of(field.annotation)
    if keys is None:
        yield key, field
        return
    for name in keys or [ANY_KEY]:
        yield from _leaves(f"{key}.{name}", keys[name])


def _row(key: str, field: FieldInfo) -> str:
    cells = [f"`{key}`", type_of(field.annotation), range_of(field), field.description or ""]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
