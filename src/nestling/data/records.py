"""The records of a file with the lines they begin on: JSONL, one JSON list of objects, or a table (CSV, TSV)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.errors import DataError

TABLES = {".csv": ",", ".tsv": "\t"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """``line`` counts from 1; ``value`` is a line of JSON still to be parsed, or what was read already."""

    line: int
    value: bytes | Any

    def parsed(self, where: str) -> Any:
        """The value.

        Raises:
            DataError: naming ``where``: not UTF-8, not JSON.
        """
        return parse_json(self.value, where) if isinstance(self.value, bytes) else self.value


def records(path: Path | str) -> Iterator[Record]:
    """One at a time; blank lines are passed over.

    Raises:
        DataError: the file cannot be opened, or is broken in a way that ends the reading.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in TABLES:
            yield from _table(path, TABLES[path.suffix.lower()])
        elif _opens_a_list(path):
            yield from _list(path)
        else:
            yield from _lines(path)
    except OSError as error:
        what = f"this file cannot be read: {error.strerror}."
        raise DataError(what, where=str(path), remedy="Check the path.") from error


def parse_json(text: bytes | str, where: str) -> Any:
    """One JSON value.

    Raises:
        DataError: naming ``where``: not UTF-8, not JSON.
    """
    try:
        return json.loads(_decoded(text, where), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"this is not JSON: {error}.", where=where, remedy="Write one whole JSON object on each line."
        ) from error


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield Record(number, line)


def _opens_a_list(path: Path) -> bool:
    """Whether the first line that is not blank is, or begins, a list of objects."""
    with path.open("rb") as file:
        first = next((line for line in file if line.removeprefix(_BOM).strip()), b"")
    return first.removeprefix(_BOM).lstrip()[:1] == b"["


def _list(path: Path) -> Iterator[Record]:
    text = _decoded(path.read_bytes().removeprefix(_BOM), str(path))
    decoder = json.JSONDecoder(parse_constant=_refuse)
    at = _past_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            what = f"this is not JSON: {getattr(error, 'msg', error)}."
            raise DataError(
                what, where=f"{path}:{line}", remedy="Mend the list, or write one object a line."
            ) from error
        yield Record(line, value)
        at = _past_space(text, at)
        if text[at : at + 1] == ",":
            at = _past_space(text, at + 1)
        elif text[at : at + 1] != "]":
            remedy = "Write a comma between two objects and ] after the last."
            raise DataError("the list breaks off after this object.", where=f"{path}:{line}", remedy=remedy)
    if text[at + 1 :].strip():
        where = f"{path}:{line + text.count(chr(10), counted, at)}"
        raise DataError("there is more after the list.", where=where, remedy="Keep one list to a file.")


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    """Rows as objects by the names of the first line; empty cells are left out."""
    with path.open("r", encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            names = [name.strip() for name in next(rows, [])]
            line = rows.line_num + 1
            for cells in rows:
                if len(cells) > len(names):
                    what = f"{len(cells)} cells below {len(names)} names."
                    remedy = "Put cells that hold the separator in quotation marks."
                    raise DataError(what, where=f"{path}:{line}", remedy=remedy)
                if any(cells):
                    yield Record(line, {n: cell for n, cell in zip(names, cells, strict=False) if cell})
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            raise _not_utf8(error, str(path)) from error
        except csv.Error as error:
            remedy = "Check its quotation marks."
            raise DataError(
                f"this table is broken: {error}.", where=f"{path}:{line}", remedy=remedy
            ) from error


def _decoded(text: bytes | str, where: str) -> str:
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise _not_utf8(error, where) from error


def _not_utf8(error: UnicodeDecodeError, where: str) -> DataError:
    remedy = "Save the file as UTF-8 text, not compressed."
    return DataError(f"this is not UTF-8 (byte {error.start + 1}).", where=where, remedy=remedy)


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
