"""Stage `ingest`: every row of the data source, in one common form."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data import sampling, sources
from prlhf.errors import UserError
from prlhf.io import atomic_path, write_json, write_parquet
from prlhf.progress import say

if TYPE_CHECKING:
    from prlhf.params import DataParams

PARAMS: Final = ("seed", "data")

OUTPUT: Final = Path("data/ingested")


def run(*, seed: int, data: DataParams) -> None:
    """Write `data/ingested/{rows.parquet,dataset.json}`.

    Raises:
        UserError: The source is missing, damaged, or does not fit the column mapping.
    """
    source = sources.read(data, seed=seed)
    rows = sampling.sample(source.rows, seed=seed, max_users=data.max_users, max_rows=data.max_rows)
    if rows.empty:
        raise UserError("no row names a user", where=source.name, fix="see data.columns.user_id")
    rows = sampling.flip_labels(rows, seed=seed, probability=data.label_noise)
    dataset = {
        "name": source.name,
        "source": data.source,
        "task": source.task,
        "rows": len(rows),
        "content_hash": blake2b(sampling.row_hashes(rows).tobytes(), digest_size=16).hexdigest(),
    }
    with atomic_path(OUTPUT, directory=True) as directory:
        write_parquet(directory / "rows.parquet", rows)
        write_json(directory / "dataset.json", dataset)
    kept = "" if len(rows) == len(source.rows) else f" of {len(source.rows)}"
    say(f"ingest: {source.name}: {len(rows)}{kept} rows of {rows['user_id'].nunique()} users")
