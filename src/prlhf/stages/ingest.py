"""Stage `ingest`: every row of the data source, in one common form."""

from hashlib import blake2b
from typing import Final

from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path, write_json, write_parquet
from prlhf.infra.progress import say
from prlhf.ingest import sources
from prlhf.params import DataParams
from prlhf.stages.paths import INGESTED

PARAMS: Final = ("seed", "data")


def run(*, seed: int, data: DataParams) -> None:
    """Write `data/ingested/{rows.parquet,dataset.json}`.

    Raises:
        UserError: The source is missing, damaged, or does not fit the column mapping.
    """
    source = sources.read(data, seed=seed)
    rows = sources.sample_rows(
        source.rows, seed=seed, max_users=data.max_users, max_rows=data.max_rows
    )
    if rows.empty:
        raise UserError("no row names a user", where=source.name, fix="see data.columns.user_id")
    dataset = {
        "name": source.name,
        "source": data.source,
        "task": source.task,
        "rows": len(rows),
        "content_hash": blake2b(sources.row_hashes(rows).tobytes(), digest_size=16).hexdigest(),
    }
    with atomic_path(INGESTED, directory=True) as directory:
        write_parquet(directory / "rows.parquet", rows)
        write_json(directory / "dataset.json", dataset)
    kept = "" if len(rows) == len(source.rows) else f" of {len(source.rows)}"
    say(f"ingest: {source.name}: {len(rows)}{kept} rows of {sources.people(rows).nunique()} users")
