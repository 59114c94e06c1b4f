"""Where preference pairs come from: built-in sets, local files, the hub, public data sets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prlhf.data import builtin, delimited, json_lines, public
from prlhf.data.columns import contract_rows
from prlhf.data.files import Records, find_files, read_file, table_records
from prlhf.errors import UserError
from prlhf.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.params import DataParams, HubParams


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        rows: Every row, in the form of `contract.ROW_COLUMNS`.
        name: What to call the data set.
        task: The task whose oracle knows what each user wants; None for other data.
    """

    rows: pd.DataFrame
    name: str
    task: str | None = None


def read(data: DataParams, *, seed: int) -> Source:
    """Read the data set that the `data` section names.

    Raises:
        UserError: It is not there, is damaged, lacks a column or holds a value of a wrong type.
    """
    mapping = data.columns.model_dump()
    if data.source == "builtin":
        rows = builtin.build(
            data.name, seed=seed, pairs_per_user=data.pairs_per_user, root=Path(data.path)
        )
        return Source(rows, data.name, data.name)
    if data.source in public.PUBLISHED:
        synthetic = data.source == "tldr" and data.tldr.labels == "length"
        return Source(public.read(data, seed=seed), data.source, "length" if synthetic else None)
    if data.source == "local":
        path = Path(data.path)
        return Source(read_local(path, mapping), path.resolve().name)
    assert data.hub.id is not None, "checked with the parameters"
    return Source(read_hub(data.hub, mapping), data.hub.id)


def read_local(path: Path, mapping: Mapping[str, str | None]) -> pd.DataFrame:
    """Rows of a file, or of all data files of a directory in the order of their names.

    `source` holds the file's name without its directory, so that the rows are the same wherever
    the files lie; `row` is the line of a text file, or the row of a Parquet file or JSON list.

    Raises:
        UserError: See `files.read_file` and `columns.contract_rows`.
    """
    import pandas as pd

    frames = [
        contract_rows(_records(file, mapping), mapping, file.name) for file in find_files(path)
    ]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _records(file: Path, mapping: Mapping[str, str | None]) -> Records:
    for reader in (json_lines, delimited):
        records = reader.read_columns(file, mapping)
        if records is not None:
            return records
    return read_file(file, {theirs for theirs in mapping.values() if theirs is not None})


def read_hub(hub: HubParams, mapping: Mapping[str, str | None]) -> pd.DataFrame:
    """Rows of one split of a hub data set; `row` counts from 1.

    Raises:
        UserError: The data set cannot be loaded (no network, no such data set, configuration,
            split or revision), or its columns do not fit.
    """
    import datasets
    import huggingface_hub

    assert hub.id is not None
    # Both log every retry of every request; what failed in the end is in the error below.
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    say(f"ingest: loading {hub.id} from the hub")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:
        # The library documents no closed list: network, cache, parsing and look-up errors of four
        # packages come out of here, and all of them are about the data set that was asked for.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load this data set: {reason}",
            where=hub.id,
            fix="check data.hub.* and the network, or download it and set data.source to local",
        ) from error
    if not isinstance(found, datasets.Dataset):
        raise UserError(f"data.hub.split names no single split: {hub.split}", where=hub.id)
    if not len(found):
        raise UserError(f"split {hub.split} is empty", where=hub.id)
    names = list(found.column_names)
    wanted = [name for name in names if name in set(mapping.values())]
    table = found.select_columns(wanted).with_format("arrow")[:]
    return contract_rows(table_records(table, hub.id, names), mapping, hub.id)
