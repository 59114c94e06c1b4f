"""Files: atomic writes, JSON, Parquet, and where an interrupted run keeps its work.

Everything that a stage leaves behind goes through `atomic_path`, so that an interrupted or failed
run never leaves half a file under a final name.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prlhf.infra.errors import UserError, disk_errno

if TYPE_CHECKING:
    import pandas as pd

SOURCE: Final = "prlhf_source.json"
"""The file beside a resolved base model's weights that says where they came from."""

CHECKPOINTS: Final = Path(".cache/checkpoints")
"""Where interrupted runs keep their work: outside DVC's outputs, which it deletes before a run."""

ABANDONED: Final = 86400.0
"""Seconds without a change after which nobody is thought to write to an unfinished file, where the
file system has no locks to tell by."""

NEW: Final = 5.0
"""Seconds within which the maker of an unfinished file has locked it."""

UNFINISHED: Final = 3
"""Runs of a stage and method whose work is kept: the present one, and the last before it."""

WITHOUT_EFFECT: Final = re.compile(
    r"infra(\.(?!distributed$).*)?$|params(\..*)?$|(cli|commands|launch|__main__|stages)$"
)
"""Modules of this package that no result depends on: editing them loses no checkpoint."""

_REPRODUCE = "`dvc repro` makes it anew"
_TORCH_ERROR = re.compile(r"iostream error|unexpected pos \d+|PytorchStreamWriter failed")


@contextlib.contextmanager
def atomic_path(path: str | Path, *, directory: bool = False) -> Iterator[Path]:
    """Write a file or directory that appears under its name only when it is complete.

    Yields a temporary sibling (same suffix, hidden) for the caller to write to; parents are made
    as needed. When the block ends, its content is flushed to disk and renamed to `path`, replacing
    what was there. When the block raises, the sibling is removed and `path` stays as it was. What
    killed processes left of earlier ones is removed, too.

    Args:
        path: The final name.
        directory: Yield a new empty directory instead of a new empty file.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final)
    token = f"{secrets.token_hex(4)}.partial"
    partial = final.with_name(f".{final.stem}.{token}{final.suffix}")
    try:
        with naming(final):
            if directory:
                partial.mkdir()
            else:
                partial.touch(exist_ok=False)
            with _locked(partial):
                yield partial
                flush(partial)
                _replace(partial, final)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = error.filename.replace(str(partial), str(final))
        raise
    _fsync(final.parent)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Make errors of a full or failing disk name the file: an `OSError` with `path`.

    The system does not say which file a write was to, and libraries in C++ or Rust report its
    errors in words of their own.
    """
    try:
        yield
    except Exception as error:
        number = disk_errno(error)
        if number is None and isinstance(error, RuntimeError) and _TORCH_ERROR.search(str(error)):
            # torch does not say why a write failed; next to no space left is nearly always it.
            place = next(each for each in Path(path).absolute().parents if each.exists())
            number = errno.ENOSPC if shutil.disk_usage(place).free < 2**20 else errno.EIO
        if number is None or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with `\\n` line ends, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON with sorted keys, indented by 2, atomically; numpy scalars become plain numbers.

    Raises:
        ValueError: A float is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(
        obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain
    )
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    require_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8 text", where=path) from error
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}") from error


def write_parquet(path: str | Path, df: pd.DataFrame) -> None:
    """Write a table without its index, atomically; equal tables give equal bytes."""
    with atomic_path(path) as partial:
        df.to_parquet(partial, engine="pyarrow", index=False, compression="zstd")


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table, or some of its columns in the order given.

    Raises:
        UserError: The file is missing, is not Parquet, or lacks one of `columns`.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        if columns is not None:
            present = set(pq.read_schema(path).names)
            missing = [name for name in columns if name not in present]
            if missing:
                raise UserError(f"has no column {', '.join(missing)}", where=path, fix=_REPRODUCE)
        return pd.read_parquet(
            path, engine="pyarrow", columns=None if columns is None else list(columns)
        )
    except pa.ArrowInvalid as error:
        raise UserError("is not a readable Parquet file", where=path, fix=_REPRODUCE) from error


def require_file(path: str | Path) -> None:
    """Check that an earlier stage's file is there.

    Raises:
        UserError: It is not.
    """
    if not Path(path).exists():
        raise UserError("no such file", where=path, fix="`dvc repro` makes what is missing")


def require_place(root: Path, folders: Iterable[Path]) -> None:
    """Refuse places in which DVC cannot keep results, which it says only after a stage has run.

    Args:
        root: The project, an absolute path.
        folders: What its outputs lie in, relative to the root; they need not be there.

    Raises:
        UserError: DVC or Git cannot work with the project's path, or a folder is behind a symbolic
            link that leads out of the Git repository.
    """
    shown = os.fsencode(root).decode(errors="replace")
    if shown != str(root):
        raise UserError("DVC needs a path in UTF-8", where=shown, fix="rename the directory")
    # DVC takes braces for fields of a format; Git lists where copies find their objects by line.
    if {"{", "}", "\n"} & set(shown):
        problem = "DVC and Git cannot work in a path with {, } or a line break"
        raise UserError(problem, where=root, fix="rename the directory")
    top = next((each for each in (root, *root.parents) if (each / ".git").exists()), None)
    if top is None:
        return
    for folder in folders:
        place = (root / folder).resolve()
        if not place.is_relative_to(top.resolve()):
            link = next(each for each in (folder, *folder.parents) if (root / each).is_symlink())
            raise UserError(
                f"leads to {place}, and DVC keeps no results outside of the Git repository",
                where=link,
                fix="make it a plain directory; for another disk, set `dvc cache dir` to a place "
                "there and `dvc config cache.type symlink`",
            )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[bool | None]:
    """Hold the lock of whoever writes to an unfinished file or directory.

    The system lets go of it when a process dies. Yields whether it is ours; None if this file
    system has no locks.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield False if isinstance(error, BlockingIOError) else None
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_abandoned(final: Path) -> None:
    """Remove unfinished files and directories to which nobody writes any more."""
    for left in final.parent.glob(f".{glob.escape(final.stem)}.*.partial*"):
        with contextlib.suppress(OSError), _locked(left) as ours:
            # Locked last if at all: between the making and the locking of one there is a moment.
            changed = max(map(_last_change, [left, *left.rglob("*")]))
            if time.time() - changed > (NEW if ours else ABANDONED) and ours is not False:
                _remove(left)


def _last_change(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone: another process drops it, too
        return 0.0


def flush(path: Path) -> None:
    """Wait until a file, or a directory with all that is in it, is on the disk."""
    for entry in [*path.rglob("*"), path]:
        if not entry.is_symlink():
            _fsync(entry)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(new: Path, final: Path) -> None:
    if not final.is_dir() or final.is_symlink():
        if new.is_dir() and final.exists():
            final.unlink()
        new.replace(final)
        return
    # A directory cannot be renamed onto a full one: move the old one aside, and back on failure.
    old = final.with_name(f"{new.name}.old")
    final.rename(old)
    try:
        new.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        # A read-only file system refuses even to remove what is not there.
        with contextlib.suppress(OSError):
            path.unlink()


# -- interrupted runs -----------------------------------------------------------------------------


def run_key(settings: Any, inputs: Iterable[Path]) -> str:
    """Name of a run: 16 hexadecimal digits of a hash of all that determines its result.

    That includes what the loaded modules of this package do, those `WITHOUT_EFFECT` left out, but
    not their comments, docstrings and layout.

    Args:
        settings: anything that JSON can represent, and sections of the parameters.
        inputs: files, or directories of which all files count.
    """
    digest = hashlib.blake2b(digest_size=8)

    def add_file(path: Path) -> None:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())

    digest.update(json.dumps(settings, sort_keys=True, default=vars).encode())
    for path in inputs:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(file.relative_to(path).as_posix().encode())
            add_file(file)
    for file in _code():
        tree = _WithoutRemarks().visit(ast.parse(file.read_bytes()))
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def checkpoint_directory(name: str, key: str) -> Path:
    """Where a run keeps its work until its result is written; not made here.

    Runs that were interrupted and never went on leave their work for ever. Here, when another one
    starts, all but the `UNFINISHED` latest runs of the same name are dropped.

    Args:
        name: of the stage and method.
        key: of the run, see `run_key`.
    """
    directory = CHECKPOINTS / f"{name}-{key}"
    others = [path for path in CHECKPOINTS.glob(f"{name}-{'?' * len(key)}") if path != directory]
    for old in sorted(others, key=_last_change, reverse=True)[UNFINISHED - 1 :]:
        discard(old)
    return directory


def discard(directory: Path) -> None:
    """Delete what a run kept, once its result is written."""
    shutil.rmtree(directory, ignore_errors=True)


class _WithoutRemarks(ast.NodeTransformer):
    """Leaves out docstrings, and other constants that stand alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def _code() -> list[Path]:
    """The source files of this package that are loaded and that a result can depend on."""
    package = __name__.split(".")[0]
    return sorted(
        {
            Path(file)
            for name, module in list(sys.modules.items())
            if name.split(".")[0] == package
            and not WITHOUT_EFFECT.match(name.removeprefix(f"{package}."))
            and (file := getattr(module, "__file__", None))
        }
    )
