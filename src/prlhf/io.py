"""Files: atomic writes, JSON and Parquet, content hashes.

Everything that a stage leaves behind goes through `atomic_path`, so that an interrupted or failed
run never leaves half a file under a final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@contextlib.contextmanager
def atomic_path(path: str | Path, *, directory: bool = False) -> Iterator[Path]:
    """Write a file or directory that appears under its name only when it is complete.

    Yields a temporary sibling (same suffix, hidden) for the caller to write to; parents are made
    as needed. When the block ends, its content is flushed to disk and renamed to `path`, replacing
    what was there. When the block raises, the sibling is removed and `path` stays as it was.

    Args:
        path: The final name.
        directory: Yield a new empty directory instead of the name of a file not yet there.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    token = f"{secrets.token_hex(4)}.partial"
    partial = final.with_name(f".{final.stem}.{token}{final.suffix}")
    try:
        with naming(final):
            if directory:
                partial.mkdir()
            yield partial
            _flush(partial)
        _replace(partial, final)
    except OSError as error:
        _remove(partial)
        if isinstance(error.filename, str):
            error.filename = error.filename.replace(str(partial), str(final))
        raise
    except BaseException:
        _remove(partial)
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
        number = _disk_errno(error, Path(path))
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
    _require(Path(path))
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

    _require(Path(path))
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


def content_hash(*parts: str) -> str:
    """A stable name for a sequence of strings: 16 hexadecimal digits.

    Each part is hashed with its length, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        # Lone surrogates are legal in JSON escapes: hash them rather than fail on them.
        data = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def content_hashes(columns: Sequence[pa.Array]) -> list[str]:
    """`content_hash` of each row of some Arrow columns of text, none of them with a missing value.

    Args:
        columns: Arrays of one length, the parts in their order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.large_binary()
    parts = []
    for column in columns:
        data = column.cast(pa.large_string()).cast(kind)
        lengths = pc.binary_length(data).to_numpy(zero_copy_only=False).astype("<u8")
        sizes = pa.Array.from_buffers(pa.binary(8), len(data), [None, pa.py_buffer(lengths)])
        parts += [sizes.cast(kind), data]
    whole = pc.binary_join_element_wise(*parts, pa.scalar(b"", kind))
    return [hashlib.blake2b(row, digest_size=8).hexdigest() for row in whole.to_pylist()]


_REPRODUCE = "`dvc repro` makes it anew"


def _require(path: Path) -> None:
    if not path.exists():
        raise UserError("no such file", where=path, fix="`dvc repro` makes what is missing")


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as plain Python, without importing numpy."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_ERROR = re.compile(r"iostream error|unexpected pos \d+|PytorchStreamWriter failed")


def _disk_errno(error: Exception, path: Path) -> int | None:
    """The system's number of a disk error, however it was reported; None for other errors."""
    if isinstance(error, OSError):
        return error.errno if error.errno in _DISK_ERRORS else None
    if found := _RUST_ERROR.search(str(error)):
        return int(found.group(1)) if int(found.group(1)) in _DISK_ERRORS else None
    if isinstance(error, RuntimeError) and _TORCH_ERROR.search(str(error)):
        # torch does not say why a write failed; next to no space left is nearly always it.
        place = next(parent for parent in path.absolute().parents if parent.exists())
        return errno.ENOSPC if shutil.disk_usage(place).free < 2**20 else errno.EIO
    return None


def _flush(path: Path) -> None:
    if path.is_dir():
        for entry in sorted(path.rglob("*")):
            if not entry.is_symlink():
                _fsync(entry)
    _fsync(path)


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
