"""Prompts of one's own to answer, instead of those that the data set holds out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prlhf.data.contract import PromptError, canonical_prompt, prompt_id
from prlhf.data.files import read_lines, read_values
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FIELD: Final = "prompt"
KEY: Final = "params.yaml: generate.prompts_path"
KINDS: Final = (".json", ".jsonl", ".parquet", ".txt")


def read_prompts(path: Path) -> pd.DataFrame:
    """The distinct prompts of a file: `prompt_id`, `prompt` (canonical), in the file's order.

    Args:
        path: A JSON list, JSON lines, a Parquet table with a column `prompt`, or text with a prompt
            a line; gzipped or not. A JSON value is a prompt, or an object with one under `prompt`;
            a prompt is text, or a list of chat messages.

    Raises:
        UserError: There is no such file, it is damaged or of another kind, holds something that is
            no prompt, or no prompt at all.
    """
    import pandas as pd

    found: dict[str, str] = {}
    for where, value in _values(path):
        if isinstance(value, dict):
            if FIELD not in value:
                raise UserError(f"has no field {FIELD}", where=where)
            value = value[FIELD]
        try:
            prompt = canonical_prompt(value)
        except PromptError as error:
            raise UserError(str(error), where=f"{where}: {FIELD}") from error
        found.setdefault(prompt_id(prompt), prompt)
    if not found:
        raise UserError("holds no prompt", where=path, fix=f"see {KEY}")
    return pd.DataFrame({"prompt_id": list(found), "prompt": list(found.values())})


def without_learned(prompts: pd.DataFrame, learned: Collection[str], path: Path) -> pd.DataFrame:
    """Prompts that nothing was trained or chosen on.

    Args:
        prompts: What `read_prompts` gave.
        learned: Ids of the prompts of the training and validation sides.
        path: Where `prompts` are from.

    Raises:
        UserError: None is left.
    """
    new = prompts[~prompts["prompt_id"].isin(learned)].reset_index(drop=True)
    if new.empty:
        raise UserError(
            "has no prompt that is not in the training or validation data",
            where=path,
            fix="answers to these show memory; name other prompts",
        )
    return new


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if not path.is_file():
        problem = "is no file" if path.exists() else "no such file"
        raise UserError(problem, where=path, fix=f"see {KEY}")
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of file {kind or 'without a suffix'}",
            where=path,
            fix=f"known: {', '.join(KINDS)}, each also with .gz",
        )
    read = read_lines(path) if kind == ".txt" else read_values(path, (FIELD,))
    for _, where, value in read:
        yield where, value
