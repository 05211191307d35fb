"""What a file is that is not a log of JSON lines, and what makes one of it."""

from __future__ import annotations

import json
import os
import shlex
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from monitor.errors import SourceError

HEAD_BYTES = 65_536
STDIN = "-"
_MAGIC = ((b"\x1f\x8b", "gzip", ".gz"), (b"\x28\xb5\x2f\xfd", "zstd", ".zst"))
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_TO_LINES = "import pandas; pandas.{read}({path!r}).to_json({out!r}, orient='records', lines=True)"


@dataclass(frozen=True, slots=True)
class Shape:
    """`what` completes "FILE ..."; `fix` is what to type or do."""

    what: str
    fix: str


def require_files(paths: Iterable[Path]) -> None:
    """Raises SourceError for the first that is no file to read."""
    for path in paths:
        if str(path) == STDIN:
            continue
        if path.is_dir():
            raise SourceError(f"{path} is a folder; name the files in it, such as {path}/*.jsonl")
        if not os.access(path, os.R_OK):
            raise SourceError(f"{path}: no such file, or it may not be read")


def shape_of(path: Path) -> Shape | None:
    """What keeps the lines of `path` from being read as JSON objects; None where its head shows nothing."""
    if str(path) == STDIN:
        return None
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    packed = _packing(path, head)
    if packed is not None:
        return packed
    if path.suffix == ".zst":
        return None
    return _text_shape(path, _unpacked(head) if path.suffix == ".gz" else head)


def _packing(path: Path, head: bytes) -> Shape | None:
    """A file whose name and content do not agree on how it is packed, or one of another kind."""
    for magic, name, suffix in _MAGIC:
        if head.startswith(magic) and path.suffix != suffix:
            return Shape(f"is packed with {name} but is not named {suffix}", f"rename it to {path}{suffix}")
        if path.suffix == suffix and head and not head.startswith(magic):
            return Shape(f"is named {suffix} but is not packed", f"rename it to {path.with_suffix('')}")
    if head.startswith(b"PAR1"):
        return Shape("is a Parquet file", _by_pandas("read_parquet", path))
    return None


def _unpacked(head: bytes) -> bytes:
    """As much as can be had of the beginning of a gzip file."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _text_shape(path: Path, head: bytes) -> Shape | None:
    quoted, out = shlex.quote(str(path)), shlex.quote(_lines_name(path))
    if not head.strip():
        return Shape("is empty", "name a file with one JSON object per line")
    if head.startswith(_UTF16):
        return Shape("is UTF-16", f"iconv -f UTF-16 -t UTF-8 {quoted} > {out}")
    if head.startswith(_BOM):
        return Shape("begins with a byte order mark", f"tail -c +4 {quoted} > {out}")
    if b"\0" in head or _share_of_controls(head) > 0.1:
        return Shape("is binary", "name a file with one JSON object per line")
    text = head.decode("utf-8", errors="replace").lstrip()
    unpack = f"gzip -dc {quoted} | jq" if path.suffix == ".gz" else "jq"
    source = "" if path.suffix == ".gz" else f" {quoted}"
    if text.startswith("["):
        return Shape("is one JSON array, not one object per line", f"{unpack} -c '.[]'{source} > {out}")
    first = text.splitlines()[0]
    if text.startswith("{"):
        broken_up = first.strip() == "{" or _is_beginning(first)
        fix = f"{unpack} -c .{source} > {out}"
        return Shape("has its JSON spread over several lines", fix) if broken_up else None
    if _looks_like_csv(text):
        return Shape("looks like CSV", _by_pandas("read_csv", path))
    if any(line.startswith("{") for line in text.splitlines()):
        return None
    return Shape("holds plain text, not JSON", "let the service write one JSON object per request and line")


def _lines_name(path: Path) -> str:
    """The name under which the mended file is written."""
    bare = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    return f"{bare.with_suffix('')}.lines.jsonl"


def _by_pandas(read: str, path: Path) -> str:
    program = _TO_LINES.format(read=read, path=str(path), out=_lines_name(path))
    plain = not set(program) & set('"$`\\!')
    return f'python -c "{program}"' if plain else f"python -c {shlex.quote(program)}"


def _share_of_controls(head: bytes) -> float:
    return sum(byte < 9 or 13 < byte < 32 for byte in head) / len(head)


def _is_beginning(line: str) -> bool:
    """An object that does not end on its line."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    except RecursionError:
        pass
    return False


def _looks_like_csv(text: str) -> bool:
    lines = [line for line in text.splitlines()[:5] if line.strip()]
    if len(lines) < 2:
        return False
    widths = {mark: [line.count(mark) for line in lines] for mark in ",;\t"}
    return any(counts[0] > 0 and len(set(counts)) == 1 for counts in widths.values())
