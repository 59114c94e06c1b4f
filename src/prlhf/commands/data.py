"""`prlhf data`: add feedback, and see what changed between two versions of the data."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import click

PARAMS = Path("params.yaml")


@click.command(short_help="Add the new rows of files of feedback as a dated batch.")
@click.argument("inbox", type=click.Path(path_type=Path))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("data/feedback"),
    show_default=True,
    help="Directory of the batches.",
)
def add(inbox: Path, store: Path) -> None:
    """Add the new rows of INBOX, a file or a directory of files, as a dated batch.

    Rows that the store has already are left out, so the same inbox can be given again. DVC then
    tracks the store (`dvc add`). If params.yaml reads the store, rows that its data.columns do not
    fit are refused.
    """
    from prlhf.data import feedback
    from prlhf.params import load

    data = load(PARAMS).data if PARAMS.exists() else None
    reads = data is not None and data.source == "local" and Path(data.path) == store
    columns = data.columns.model_dump() if data is not None and reads else None
    done = feedback.append(inbox, store, today=datetime.date.today(), columns=columns)
    if store.is_dir():
        feedback.track(store)
    known = f" ({done.known} known)" if done.known else ""
    if done.path is None:
        click.echo(f"data: nothing new{known}")
        return
    click.echo(f"data: {done.rows} new rows{known} -> {done.path}")
    tracked = f"{store}.dvc {store.parent / '.gitignore'}"
    click.echo(f"data: keep this version: git add {tracked} && git commit")
    if data is not None and not reads:
        click.echo(
            f"data: params.yaml does not read it yet: set data.source: local, data.path: {store}"
        )


@click.command("log", short_help="Show what changed between two versions of the data.")
@click.argument("rev_a", required=False)
@click.argument("rev_b", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON, with all users.")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Versions in the history.",
)
def log(rev_a: str | None, rev_b: str | None, as_json: bool, number: int) -> None:
    """Show what changed in the data from REV_A to REV_B (the workspace, unless given).

    A revision is whatever Git takes for one, or `workspace`. Without one, list the commits that
    changed the data, newest first. Only data in DVC's cache are looked at; nothing is fetched.
    """
    from dataclasses import asdict

    from prlhf.data import change_text, changes, versions

    if rev_a is None:
        found = changes.history(number)
        click.echo(_json(asdict(found)) if as_json else change_text.history_text(found))
    else:
        between = changes.compare(rev_a, rev_b or versions.WORKSPACE)
        click.echo(_json(asdict(between)) if as_json else change_text.changes_text(between))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
