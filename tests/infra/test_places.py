"""Where a project may be: what DVC finds out too late is found before anything runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.infra.errors import UserError
from prlhf.infra.io import require_place

FOLDERS = (Path("data"), Path("data/scores"), Path("models"))
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES.filter(lambda name: name not in {".", ".."} and len(name.encode()) < 200))
def test_a_path_is_taken_unless_dvc_or_git_cannot_work_in_it(name):
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / name
        (root / ".git").mkdir(parents=True)
        (root / "data").mkdir()
        if not {"{", "}", "\n"} & set(name):
            require_place(root, FOLDERS)
            return
        with pytest.raises(UserError, match="DVC and Git cannot work in a path with "):
            require_place(root, FOLDERS)


def test_a_path_that_is_no_text_is_refused_in_words_that_can_be_printed():
    with pytest.raises(UserError, match="DVC needs a path in UTF-8") as caught:
        require_place(Path(os.fsdecode(b"/p/caf\xe9")), FOLDERS)
    assert str(caught.value).encode()


@pytest.mark.parametrize("folder", ["data", "data/scores", "models"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_linked_folder_is_taken_if_it_stays_in_the_repository(tmp_path, folder, inside):
    root = tmp_path / "repository" / "project"
    (root / folder).parent.mkdir(parents=True)
    place = (root.parent if inside else tmp_path) / "elsewhere"
    place.mkdir()
    (root / folder).symlink_to(place)
    require_place(root, FOLDERS)  # without Git, DVC does not mind
    (root.parent / ".git").mkdir()
    if inside:
        require_place(root, FOLDERS)
        return
    with pytest.raises(UserError) as caught:
        require_place(root, FOLDERS)
    line = str(caught.value)
    assert line.startswith(f"{folder}: leads to {place}, and DVC keeps no results outside")
    assert "`dvc cache dir`" in line


def test_links_on_the_way_to_the_project_and_links_that_lead_nowhere(tmp_path):
    real = tmp_path / "disk" / "project"
    (real / ".git").mkdir(parents=True)
    (real / "data").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    require_place(tmp_path / "home" / "project", FOLDERS)
    (real / "models").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(UserError, match=r"^models: leads to "):
        require_place(real, FOLDERS)
