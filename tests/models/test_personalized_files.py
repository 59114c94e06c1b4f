"""A model directory says all there is to say about its model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from personal import USERS, personalise
from prlhf.generation import generate
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import CARD, FORMAT, TABLES, read_card

ROWS = [Row(u, [5 + u, 6, 7], [[8, 9, 1], [10 + u, 1]]) for u in range(len(USERS) + 1)]


@pytest.fixture
def tree(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `models/base`, which is the current one."""
    shutil.copytree(tiny_path, tmp_path / "here" / "models" / "base")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    return tmp_path / "here"


def saved(kind: str = "individual", **options) -> tuple[PersonalizedLM, Path]:
    """A model and the directory it was saved to, made as the train stage does."""
    base = load_base(Path("models/base"), "float32")
    lm = personalise(base, kind, **options)
    lm.about = {"method": "pdpo", "objective": {"alpha": 0.5}}
    directory = Path("models/pdpo")
    directory.mkdir()
    lm.save_pretrained(directory)
    return lm, directory


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_a_round_trip_is_bit_identical(tree: Path, kind: str) -> None:
    lm, directory = saved(kind)
    expected = lm.score(ROWS, label="test").logps
    loaded = PersonalizedLM.from_pretrained(directory)
    assert torch.equal(loaded.score(ROWS, label="test").logps, expected)
    assert loaded.user_model.kind == kind
    assert loaded.user_model.config() == lm.user_model.config()
    assert loaded.about == lm.about
    assert (loaded.encoder.max_prompt, loaded.encoder.max_response) == (64, 32)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_model_that_reads_user_texts_needs_nothing_retyped(tree: Path) -> None:
    lm, directory = saved(max_user_text=12)
    assert read_card(directory)["tokens"]["max_user_text"] == 12
    loaded = PersonalizedLM.from_pretrained(directory)
    assert loaded.encoder.max_user_text == 12
    asked = (["Why?", "Why?"], ["ann", None], ["I am new.", "I am new and much too long"])
    greedy = {"max_new_tokens": 6, "temperature": 0}
    answers = generate(loaded, *asked, **greedy)
    assert answers == generate(lm, *asked, **greedy)
    assert answers != generate(loaded, *asked[:2], **greedy)


def test_a_model_without_adapter(tree: Path) -> None:
    lm, directory = saved(lora=False)
    assert not (directory / "adapter_config.json").exists()
    loaded = PersonalizedLM.from_pretrained(directory)
    assert torch.equal(loaded.score(ROWS, label="test").logps, lm.score(ROWS, label="test").logps)


def test_saving_a_loaded_model_writes_the_same_bytes(tree: Path) -> None:
    _, directory = saved()
    again = Path("models/again")
    again.mkdir()
    PersonalizedLM.from_pretrained(directory).save_pretrained(again)
    names = sorted(p.name for p in directory.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    assert {CARD, TABLES, "adapter_config.json", "adapter_model.safetensors"} == set(names)
    for name in names:
        assert (directory / name).read_bytes() == (again / name).read_bytes(), name


def test_users_go_by_their_own_ids(tree: Path) -> None:
    _, directory = saved()
    loaded = PersonalizedLM.from_pretrained(directory)
    greedy = {"max_new_tokens": 6, "temperature": 0}
    ann, bob, nobody = generate(loaded, ["Why?"] * 3, ["ann", "bob", None], **greedy)
    assert len({ann, bob, nobody}) == 3


def test_whole_trees_can_move(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, directory = saved()
    expected = lm.score(ROWS, label="test").logps
    moved = tree.rename(tree.with_name("there"))
    monkeypatch.chdir(moved.parent)
    loaded = PersonalizedLM.from_pretrained(moved / directory)
    assert torch.equal(loaded.score(ROWS, label="test").logps, expected)


def test_a_model_can_move_away_from_its_base(tree: Path, tmp_path: Path) -> None:
    lm, directory = saved()
    expected = lm.score(ROWS, label="test").logps
    elsewhere = tmp_path / "elsewhere"
    directory.rename(elsewhere)
    with pytest.raises(UserError, match="no base model here"):
        PersonalizedLM.from_pretrained(elsewhere)
    loaded = PersonalizedLM.from_pretrained(elsewhere, base=tree / "models" / "base")
    assert torch.equal(loaded.score(ROWS, label="test").logps, expected)


def test_a_sibling_that_is_renamed_finds_its_base(tree: Path) -> None:
    """Stages write to a temporary directory beside the final one."""
    lm, directory = saved()
    final = directory.rename(directory.with_name("other"))
    loaded = PersonalizedLM.from_pretrained(final)
    assert torch.equal(loaded.score(ROWS, label="test").logps, lm.score(ROWS, label="test").logps)


def test_plain_peft_loads_the_adapter(tree: Path) -> None:
    lm, directory = saved()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained("models/base"), str(directory)
        )
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        expected = lm.lm(ids).logits
        assert torch.equal(plain.eval()(ids).logits, expected)
        base = load_base(Path("models/base"), "float32").model(ids).logits
    assert not torch.allclose(expected, base, atol=1e-3)


def test_nothing_in_the_directory_names_this_machine(tree: Path) -> None:
    _, directory = saved()
    for file in directory.iterdir():
        content = file.read_bytes()
        for word in (str(tree), str(tree.parent), "/tmp", str(Path.home())):
            assert word.encode() not in content, f"{word} in {file.name}"


def test_the_card(tree: Path) -> None:
    record = {"kind": "package", "name": "tiny", "sha256": "00"}
    (tree / "models/base/prlhf_source.json").write_text(json.dumps(record))
    _, directory = saved("cluster")
    card = read_card(directory)
    assert card == {
        "format": FORMAT,
        "base": {"path": "../base", **record},
        "tokens": {"max_prompt": 64, "max_response": 32, "max_user_text": None},
        "users": USERS,
        "user_model": {
            "kind": "cluster",
            "tokens": 2,
            "dim": 32,
            "clusters": 3,
            "trust": 1.0,
        },
        "method": "pdpo",
        "objective": {"alpha": 0.5},
    }


def test_saving_asks_no_hub(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does loading."""
    asked: list[tuple[object, ...]] = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    lm, directory = saved()
    loaded = PersonalizedLM.from_pretrained(directory)
    assert asked == []
    assert loaded.about == lm.about


def test_errors_name_what_is_wrong(tree: Path) -> None:
    with pytest.raises(UserError, match=rf"models/nothing: no {CARD} here"):
        PersonalizedLM.from_pretrained("models/nothing")
    _, directory = saved()
    card = read_card(directory)
    (directory / CARD).write_text(json.dumps({**card, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="written by a newer prlhf"):
        PersonalizedLM.from_pretrained(directory)
    (directory / CARD).write_text(json.dumps(card))
    shutil.rmtree("models/base")
    with pytest.raises(UserError, match=r"models/base: no base model here"):
        PersonalizedLM.from_pretrained(directory)


def test_a_base_that_is_no_language_model(tree: Path) -> None:
    for content in ('{"model_type": "nonsense"}', '{"model_type": "vit"}', "{}"):
        Path("models/base/config.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
            load_base(Path("models/base"))


def test_a_tokenizer_without_an_end(tree: Path) -> None:
    path = Path("models/base/tokenizer_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("eos_token")
    path.write_text(json.dumps(config), encoding="utf-8")
    # The chat template has one.
    assert load_base(Path("models/base")).chat.conventions.end == "<|end|>"
    Path("models/base/chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_base(Path("models/base"))


def test_devices_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    from prlhf.models.base import pick_device, pick_dtype

    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    assert pick_device() == torch.device("cpu")
    monkeypatch.setenv("PRLHF_DEVICE", "abacus")
    with pytest.raises(UserError, match="PRLHF_DEVICE: 'abacus' is not a torch device"):
        pick_device()
    monkeypatch.delenv("PRLHF_DEVICE")
    assert pick_device().type in ("cpu", "cuda")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16


def test_the_reference_is_the_base_model_without_users(tiny_base: BaseModel) -> None:
    lm = PersonalizedLM.reference(tiny_base, Encoder(tiny_base.chat, 64, 32))
    row = Row(0, [5, 6], [[7, 8, 1]])
    with torch.no_grad():
        logits = torch.log_softmax(tiny_base.model(torch.tensor([[5, 6, 7, 8, 1]])).logits[0], -1)
    expected = logits[1, 7] + logits[2, 8] + logits[3, 1]
    torch.testing.assert_close(lm.score([row], label="test").logps[0], expected)
