"""Where preference pairs come from, and smaller versions of a data set.

A new source is a module here with a function that reads it, an entry in `SOURCES`, and its settings
in `prlhf.params.data`.
"""

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from prlhf.data.identity import PIECE, as_column, normal_ids
from prlhf.data.ids import generator, shuffled
from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.ingest import prism, psoups, tldr
from prlhf.ingest.columnar import read_columns
from prlhf.ingest.columns import Source, contract_rows, typed_rows
from prlhf.ingest.published import loading_from_hub
from prlhf.ingest.tables import find_files, read_file, table_records
from prlhf.params import DataParams, HubParams
from prlhf.params.data import SEED_DATA
from prlhf.tasks import Pairs, Task, built_in_tasks


def read(data: DataParams, *, seed: int) -> Source:
    """Read the data set that the `data` section names.

    Raises:
        UserError: It is not there, is damaged, lacks a column or holds a value of a wrong type.
    """
    return SOURCES[data.source](data, seed=seed)


def read_local(path: Path, mapping: Mapping[str, str | None]) -> pd.DataFrame:
    """Rows of a file, or of all data files in and below a directory in the order of their names.

    `source` holds the file's name without the directory, so that the rows are the same wherever
    the files lie; `row` is the line of a text file, or the row of a Parquet file or JSON list.

    Raises:
        UserError: See `tables.read_file` and `columns.contract_rows`.
    """
    wanted = {theirs for theirs in mapping.values() if theirs is not None}
    root = path if path.is_dir() else path.parent
    frames = [
        contract_rows(
            read_columns(file, mapping) or read_file(file, wanted),
            mapping,
            file.relative_to(root).as_posix(),
        )
        for file in find_files(path)
    ]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def read_hub(hub: HubParams, mapping: Mapping[str, str | None]) -> pd.DataFrame:
    """Rows of one split of a hub data set; `row` counts from 1.

    Raises:
        UserError: The data set cannot be loaded (no network, no such data set, configuration,
            split or revision), or its columns do not fit.
    """
    import datasets

    assert hub.id is not None, "checked with the parameters"
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with loading_from_hub(hub.id, instead="set data.source to local"):
        found = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    if not isinstance(found, datasets.Dataset):
        raise UserError(f"data.hub.split names no single split: {hub.split}", where=hub.id)
    if not len(found):
        raise UserError(f"split {hub.split} is empty", where=hub.id)
    names = list(found.column_names)
    wanted = [name for name in names if name in set(mapping.values())]
    table = found.select_columns(wanted).with_format("arrow")[:]
    return contract_rows(table_records(table, hub.id, names), mapping, hub.id)


# ---------------------------------------------------------------- built-in tasks


def simulated_rows(task: Task, *, seed: int, pairs_per_user: int, root: Path) -> pd.DataFrame:
    """All judgements of a built-in data set, user by user.

    The users judge stored responses of the base model. Each judges `pairs_per_user` prompts drawn
    without replacement; when all prompts are used up, further pairs are other responses to the same
    prompts. No pair comes twice. Every user has a random stream of their own, and a larger
    `pairs_per_user` only adds to a smaller one's pairs. `root` holds `<name>/responses.jsonl.gz`.

    Raises:
        UserError: The stored responses are missing or damaged, or there are fewer distinct pairs
            than asked for.
    """
    responses = _read_responses(root / task.name / "responses.jsonl.gz")
    judgements: list[tuple[str, str, str, str, str, bool]] = []
    for user in task.users:
        pairs = {prompt: task.pairs(found, user.group) for prompt, found in responses.items()}
        drawn = _draw(pairs, seed, f"{task.name}:{user.user_id}", pairs_per_user)
        if len(drawn) < pairs_per_user:
            raise UserError(
                f"the built-in data set {task.name} has {len(drawn)} distinct pairs for user "
                f"{user.user_id}, {pairs_per_user} are asked for",
                where="params.yaml: data.pairs_per_user",
                fix=f"at most {len(drawn)}",
            )
        judgements += [
            (user.user_id, canonical_prompt(prompt), chosen, rejected, user.group, user.unseen)
            for prompt, chosen, rejected in drawn
        ]
    names = ["user_id", "prompt", "chosen", "rejected", "group", "unseen"]
    frame = pd.DataFrame(judgements, columns=names)
    frame["user_text"] = frame["group"].map({name: each.says for name, each in task.groups.items()})
    return typed_rows(frame.assign(row=range(1, len(frame) + 1), source=task.name))


def _read_responses(path: Path) -> dict[str, dict[str, list[str]]]:
    """By prompt and instruction, the distinct responses in stored order."""
    if not path.exists():
        raise UserError(
            "the built-in data set's responses are missing",
            where=path,
            fix=f"set data.path to {SEED_DATA}; `git checkout -- {SEED_DATA}` restores them",
        )
    names = ("prompt", "instruction", "response")
    records = read_file(path, names)
    columns = [records.columns.get(name, [None]) for name in names]
    for name, column in zip(names, columns, strict=True):
        for index, value in enumerate(column):
            if not isinstance(value, str):
                raise UserError(f'no text in "{name}"', where=records.where(index))
    responses: dict[str, dict[str, list[str]]] = {}
    for prompt, instruction, response in zip(*columns, strict=True):
        found = responses.setdefault(prompt, {}).setdefault(instruction, [])
        if response.strip() and response not in found:
            found.append(response)
    return responses


def _draw(pairs: dict[str, Pairs], seed: int, user: str, count: int) -> list[tuple[str, str, str]]:
    """Up to `count` pairs, each with its prompt: every prompt once before any comes again."""
    random = generator(seed, "builtin", user)
    prompts = sorted(prompt for prompt, found in pairs.items() if found)
    order = [prompts[index] for index in random.permutation(len(prompts))]
    ranked = {prompt: random.permutation(len(pairs[prompt])) for prompt in order}
    rounds = max(map(len, ranked.values()), default=0)
    everything = (
        (prompt, *pairs[prompt][ranked[prompt][turn]])
        for turn in range(rounds)
        for prompt in order
        if turn < len(ranked[prompt])
    )
    return list(islice(everything, count))


# ---------------------------------------------------------------- samples


def sample_rows(
    rows: pd.DataFrame, *, seed: int, max_users: int | None, max_rows: int | None
) -> pd.DataFrame:
    """A random sample of the users, then of the rows left, in source order.

    `max_users` leaves out rows without a user.
    """
    if max_users is not None:
        users = people(rows)
        rows = rows[users.isin(shuffled(users.dropna(), seed, "max_users")[:max_users])]
    if max_rows is not None and len(rows) > max_rows:
        chosen = generator(seed, "max_rows").choice(len(rows), size=max_rows, replace=False)
        chosen.sort()
        rows = rows.iloc[chosen]
    return rows.reset_index(drop=True)


def people(rows: pd.DataFrame) -> "pd.Series[str]":
    """The user of each row in one spelling for each, missing where there is none."""
    users = normal_ids(as_column(rows["user_id"])).to_pandas()
    return users.set_axis(rows.index).astype("str")


def row_hashes(rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash of each row's content, whatever the file format or library that stores it.

    The rows' index does not count.
    """
    # pandas hashes Python objects made from the values: in pieces, few exist at a time.
    parts = [rows.iloc[start : start + PIECE] for start in range(0, max(1, len(rows)), PIECE)]
    hashes = [pd.util.hash_pandas_object(part, index=False) for part in parts]
    return np.concatenate([each.to_numpy() for each in hashes])


# ---------------------------------------------------------------- the sources by name


def _builtin(data: DataParams, *, seed: int) -> Source:
    task, root = built_in_tasks()[data.name], Path(data.path)
    rows = simulated_rows(task, seed=seed, pairs_per_user=data.pairs_per_user, root=root)
    return Source(rows, data.name, data.name)


def _local(data: DataParams, *, seed: int) -> Source:
    path = Path(data.path)
    return Source(read_local(path, data.columns.model_dump()), path.resolve().name)


def _hub(data: DataParams, *, seed: int) -> Source:
    return Source(read_hub(data.hub, data.columns.model_dump()), data.hub.id or "")


SOURCES: Final[Mapping[str, Callable[..., Source]]] = {
    "builtin": _builtin,
    "local": _local,
    "hub": _hub,
    "tldr": tldr.read,
    "psoups": psoups.read,
    "prism": prism.read,
}
"""What reads each `data.source`, called with the `data` section and `seed=`."""
