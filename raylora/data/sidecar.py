"""The small text files beside the images: CSV tables and ACDC's ``Info.cfg``, as people's spreadsheets and downloads leave them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from raylora.core.errors import InputError

MAX_BYTES = 1 << 22
BLANK = ("", "nan", "none", "n/a")


def read_text(path: Path) -> str:
    """A small UTF-8 text; a byte-order mark and Windows line ends do no harm. Raises InputError."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: expected a text file, found {'a folder' if path.is_dir() else 'no regular file'}")
        if size > MAX_BYTES:
            raise InputError(f"{path}: expected a text file of at most {MAX_BYTES} bytes, found {size}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if "\0" in text:
        raise InputError(f"{path}: not a text file (it holds a zero byte)")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_settings(path: Path) -> dict[str, str]:
    """``key: value`` lines. A key that stands twice is refused."""
    found: dict[str, str] = {}
    for line in read_text(path).splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            if line.strip():
                raise InputError(f"{path}: expected 'key: value' lines, found {line[:60]!r}")
            continue
        if key.strip() in found:
            raise InputError(f"{path}: {key.strip()} stands there twice")
        found[key.strip()] = value.strip()
    return found


def read_table(path: Path, key: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that have something under ``key``, as {column: text, stripped}.

    Raises InputError: a column of ``columns`` is missing, a row's length differs from the header's, or a value of ``key`` stands twice.
    """
    lines = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        missing = [name for name in (key, *columns) if name not in header]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)} (found: {', '.join(n for n in header if n) or 'nothing'})")
        rows = []
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(f"{path}: line {lines.line_num}: expected {len(header)} cells, found {len(cells)}")
            rows.append({name: cell.strip() for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise InputError(f"{path}: line {lines.line_num}: {error}") from None
    rows = [row for row in rows if row[key]]
    seen: set[str] = set()
    for row in rows:
        if row[key] in seen:
            raise InputError(f"{path}: {key} {row[key]} stands there twice")
        seen.add(row[key])
    return rows


def whole_number(text: str, name: str, source: Path) -> int:
    """``"12"`` or a spreadsheet's ``"12.0"`` as 12. Raises InputError."""
    try:
        value = float(text)
        if value != int(value) or value < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"{source}: {name}: expected a whole number, found {text[:40]!r}") from None
    return int(value)


def blank(text: str) -> bool:
    return text.strip().lower() in BLANK
