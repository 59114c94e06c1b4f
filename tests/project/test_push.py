"""`prlhf push`: what is sent to the hub, with which figures, and what never is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from prlhf import cli
from prlhf.generation import generate
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import load_user_model, read_card
from prlhf.project import push
from training_project import lay_out, train

USERS = ["ann@example.org", "ben@example.org", "cyd@example.org"]
LIKED = torch.tensor([[0.5, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
PIPELINE = """\
stages:
  generate:
    matrix: {method: [pdpo]}
    cmd: cp models/${item.method}/user_model.json data/generated.json
    deps: [models/pdpo, src/code.py]
    params: [seed]
    outs: [data/generated.json]
  score:
    matrix: {method: [pdpo]}
    cmd: cp models/${item.method}/user_model.json data/scores.json
    deps: [models/pdpo, data/generated.json]
    outs: [data/scores.json]
  evaluate:
    cmd: cp figures/metrics.json figures/headline.json reports/
    deps: [data/scores.json, figures]
    metrics:
      - reports/metrics.json: {cache: false}
      - reports/headline.json: {cache: false}
"""
METRICS = {
    "accuracy": {"pdpo": {"macro": 0.9625}},
    "interval": {"accuracy": {"pdpo": {"macro": {"low": 0.9, "high": 0.99}}}},
}
HEADLINE = {"pdpo": {"accuracy": 0.9625, "words": 61.5, "broken": 0.0, "strange_figure": 2.0}}


@pytest.fixture(scope="module")
def made(isolated: None, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with trained models, evaluated through DVC; read only."""
    root = tmp_path_factory.mktemp("push") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_DEVICE", "cpu")
        root.mkdir()
        patch.chdir(root)
        lay_out(root, tiny_path, USERS, weights=LIKED)
        for name, kind in (("pdpo", "cluster"), ("single", "individual"), ("groups", "group")):
            train(name, kind)
        files = {
            "dvc.yaml": PIPELINE,
            "params.yaml": "seed: 1\n",
            "src/code.py": "1",
            "figures/metrics.json": json.dumps(METRICS),
            "figures/headline.json": json.dumps(HEADLINE),
        }
        for name, text in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        for command in (("init", "--quiet", "--no-scm"), ("repro", "--quiet")):
            subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    root = tmp_path / "project"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


class Hub:
    """What a hub was asked, and what it has."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.private = True
        self.fails: Exception | None = None

    def whoami(self) -> dict[str, str]:
        if self.fails is not None:
            raise self.fails
        return {"name": "someone"}

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo": repo, **options}))

    def model_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo": repo, **options}))

    def upload_folder(self, *, folder_path: Path, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", options))
        self.files = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in folder_path.rglob("*")
            if path.is_file()
        }
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(push, "HfApi", lambda: found)
    return found


def pushed(*options: str) -> int:
    return cli.execute(["push", "pdpo", "--repo", "org/likes", *options])


def test_a_model_is_sent_without_its_users(
    project: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed() == 0
    assert capsys.readouterr().out == "push: pdpo is at https://hub/org/likes/commit/1\n"
    (create, upload) = hub.calls
    assert create == ("create_repo", {"repo": "org/likes", "private": True, "exist_ok": True})
    assert upload[1]["delete_patterns"] == "*"
    assert upload[1]["revision"] is None
    assert not any(b"example.org" in content for content in hub.files.values())
    assert set(hub.files) == {path.name for path in Path("models/pdpo").iterdir()}

    # It loads where it arrives, and is to everybody what the whole model is to a stranger.
    arrived = tmp_path / "snapshot"
    arrived.mkdir()
    for name, content in hub.files.items():
        (arrived / name).write_bytes(content)
    lm = PersonalizedLM.from_pretrained(arrived, base="models/base")
    whole = PersonalizedLM.from_pretrained("models/pdpo")
    asked = {"prompts": ["Why?"] * 2, "users": [USERS[0], None], "max_new_tokens": 8}
    ann, stranger = generate(lm, **asked, temperature=0)
    assert ann == stranger == generate(whole, **asked, temperature=0)[1]
    assert (lm.user_model.users, lm.user_model.weights.weight.shape[0]) == ([], 1)
    everyone = torch.tensor([0])
    assert torch.equal(lm.user_model(everyone), whole.user_model(everyone))


@pytest.mark.parametrize("name", ["single", "groups"])
def test_all_kinds_can_leave_their_users_behind(project: Path, name: str) -> None:
    with push.parcel(name, "org/likes", user_ids=False) as (directory, _):
        found, whole = load_user_model(directory), load_user_model(Path("models") / name)
        assert found.users == []
        assert torch.equal(found(torch.tensor([0])), whole(torch.tensor([0])))
        assert found.adapter(0) == whole.adapter(0)
        assert {p.name for p in directory.iterdir()} == {
            p.name for p in (Path("models") / name).iterdir()
        }
        card = read_card(directory)
        assert {**card, "users": USERS} == read_card(Path("models") / name)


def test_users_go_with_it_when_that_is_asked_for(project: Path, hub: Hub) -> None:
    assert pushed("--with-user-ids") == 0
    assert json.loads(hub.files["user_model.json"])["users"] == USERS
    whole = Path("models/pdpo/user_model.safetensors").read_bytes()
    assert hub.files["user_model.safetensors"] == whole
    assert b"example.org" not in hub.files["README.md"]


def test_the_card_has_the_figures_of_the_evaluation(project: Path, hub: Hub, capsys) -> None:
    assert pushed() == 0
    assert "No figures" not in capsys.readouterr().err
    card = ModelCard(hub.files["README.md"].decode())
    for line in (
        "| Held-out choices predicted, mean over users | 96% (interval 90\N{EN DASH}99%) |",
        "| Words per answer | 61.50 |",
        "| Empty or degenerate answers | 0% |",
        "| strange figure | 2.00 |",
        'snapshot_download("org/likes")',
        "knows none of the 3 users",
    ):
        assert line in card.text, line
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9625)
    assert (result.dataset_name, result.dataset_split) == ("org/choices", "test")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("models/pdpo/user_model.safetensors", "models/pdpo has changed"),
        ("data/scores.json", "data/scores.json has changed"),
        ("reports/metrics.json", "reports/metrics.json has changed"),
    ],
)
def test_figures_of_another_model_are_left_out(
    project: Path, hub: Hub, capsys: pytest.CaptureFixture[str], path: str, reason: str
) -> None:
    model = load_user_model(Path("models/pdpo"))
    if path.startswith("models"):
        train("pdpo", "cluster", lora_lr=0.01)
    else:
        Path(path).write_text("{}", encoding="utf-8")
    assert pushed() == 0
    note = f"No figures on test data: since the last evaluation {reason}."
    assert f"push: {note}\n" in capsys.readouterr().err
    text = hub.files["README.md"].decode()
    assert note in text
    assert "mean over users" not in text
    assert "Loss on validation pairs" in text
    assert model.users == USERS


def test_code_and_parameters_do_not_outdate_figures(project: Path) -> None:
    Path("src/code.py").write_text("2", encoding="utf-8")
    Path("params.yaml").write_text("seed: 2\n", encoding="utf-8")
    assert push.out_of_date("pdpo") is None


def test_models_that_were_not_evaluated(project: Path, tmp_path: Path, monkeypatch) -> None:
    assert push.out_of_date("single") == "the model was not among those evaluated"
    shutil.rmtree(".dvc")
    assert push.out_of_date("pdpo") == "the model was not evaluated by the pipeline"


def test_a_dry_run_shows_all_and_asks_nobody(
    project: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = AssertionError()
    assert pushed("--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +[\d,]+  adapter_model\.safetensors$", out, re.MULTILINE)
    assert "# pdpo" in out
    assert hub.calls == []


def test_who_may_see_it(project: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.private = False
    assert pushed() == 2
    assert "org/likes: is a public repository (use another one, or --public)" in (
        capsys.readouterr().err
    )
    assert hub.files == {}
    assert pushed("--public", "--revision", "trial") == 0
    assert (
        "create_branch",
        {"repo": "org/likes", "branch": "trial", "exist_ok": True},
    ) in hub.calls
    assert hub.calls[-1][1]["revision"] == "trial"
    assert [call[1]["private"] for call in hub.calls if call[0] == "create_repo"] == [True, False]


def refused() -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None)
    return HfHubHTTPError("403 Forbidden", response=response, server_message="no right to write")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalTokenNotFoundError("no token"),
            "prlhf push: nobody is logged in to the hub (run `hf auth login`, or set HF_TOKEN)",
        ),
        (
            OfflineModeIsEnabled("offline"),
            "prlhf push: the hub is not to be asked: HF_HUB_OFFLINE is set (unset it, or use "
            "--dry-run)",
        ),
        (
            HTTPError("no route"),
            "prlhf push: the hub cannot be reached (check the network, then push again)",
        ),
        (
            refused(),
            "org/likes: the hub refuses: no right to write (check the name, and what the token "
            "(HF_TOKEN) may do)",
        ),
    ],
)
def test_what_can_go_wrong(
    project: Path, hub: Hub, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    hub.fails = error
    assert pushed() == 2
    assert f"error: {message}\n" in capsys.readouterr().err


def test_models_and_repositories_that_are_none(project: Path, hub: Hub, capsys) -> None:
    assert cli.execute(["push", "nothing", "--repo", "org/likes"]) == 2
    assert "models/nothing: no user_model.json here" in capsys.readouterr().err
    for repo in ("likes", "a/b/c", "org/li kes", "-/-"):
        assert cli.execute(["push", "pdpo", "--repo", repo]) == 2
        assert "is no name of a repository (use org/name)" in capsys.readouterr().err
    assert hub.calls == []
