"""`prlhf params diff` and `prlhf lock check`: a change of the pipeline, for who reviews it."""

from __future__ import annotations

import json

import click


@click.command("diff")
@click.argument("old", default="HEAD")
@click.argument("new", default="workspace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure that differs.")
@click.option("--all", "every", is_flag=True, help="Show every figure that differs.")
def diff(old: str, new: str, as_json: bool, every: bool) -> None:
    """Compare parameters, and what follows from their change.

    OLD and NEW are Git revisions; by default HEAD is compared with the files as they are. Prints
    Markdown: the parameters, the stages that they make stale, code and data that do so as well,
    figures before and after, and what a reviewer should not miss.
    """
    from prlhf.review import changes, page
    from prlhf.review.compare import compare

    found = compare(old, new)
    if as_json:
        text = json.dumps(changes.as_json(found), indent=2, ensure_ascii=False, default=str)
    else:
        text = page.render(found, every_metric=every).rstrip()
    click.echo(text)


@click.command("check")
def check_lock() -> None:
    """Check that dvc.lock records the pipeline as it is.

    Needs no cache and no results: a fresh clone will do. Fails with a line for every stage whose
    command, parameters, code or data are not those that dvc.lock has.
    """
    from prlhf.review import lock

    click.echo(f"dvc.lock: records all {lock.check()} stages as they are")
