"""What `prlhf data log` counts, on tables in memory; on revisions: e2e/test_data_versions.py."""

from __future__ import annotations

import contextlib
import io

import pandas as pd
import pytest

from prlhf.project import data_changes
from prlhf.project.data_changes import INGESTED, Version


def version(*users: str | None) -> Version:
    """A row for each, which differs in nothing else."""
    columns = dict.fromkeys(("prompt", "chosen", "rejected", "user_text", "weight", "group"), "-")
    file = io.BytesIO()
    pd.DataFrame({"user_id": list(users)}).assign(**columns).to_parquet(file)
    return Version({INGESTED: "-"}, (), lambda _: io.BytesIO(file.getvalue()), lambda _: None)


@pytest.fixture
def compared(monkeypatch):
    def compare(before: Version, after: Version) -> data_changes.DataChanges:
        versions = {"before": before, "after": after}
        monkeypatch.setattr(data_changes, "open_project", contextlib.nullcontext)
        monkeypatch.setattr(data_changes, "require_git", lambda repo, command: None)
        monkeypatch.setattr(data_changes, "resolve_revision", lambda repo, name, command: name)
        monkeypatch.setattr(data_changes, "_look", lambda repo, name: versions[name])
        return data_changes.compare("before", "after")

    return compare


def test_spellings_of_a_user_are_one_user(compared):
    before = version("ada", "jos\u00e9", "gus ", "gus", "gus", None)
    after = version("ada ", "\ufeffada", "jose\u0301", "zo\u00eb ", "zo\u00eb", "zo\u00eb")
    found = compared(before, after)
    assert (found.before.rows, found.before.users) == (6, 3)
    assert (found.after.rows, found.after.users) == (6, 3)
    assert (found.new_users, found.gone_users) == (("zo\u00eb",), ("gus",))


def test_nobody_is_no_user(compared):
    found = compared(version(None), version("ada"))
    assert (found.before.users, found.after.users) == (0, 1)
    assert (found.new_users, found.gone_users) == (("ada",), ())
