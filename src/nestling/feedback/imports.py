"""Judgments that were made elsewhere, from files: in the shapes we export, TRL's, OpenAI's, and Open WebUI's export.

A row becomes one judgment or several (``rows``, ``open_webui``), written down with the file it came from. Its answers
are of foreign versions and its raters nobody here (``people.foreign``): they teach, and say nothing of a version that
is served.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from sqlalchemy import select

from nestling.data.records import records
from nestling.errors import DataError
from nestling.feedback.people import Person
from nestling.feedback.recorder import Origin, Recorder, batched
from nestling.feedback.rows import said_in
from nestling.feedback.said import LeftOut, Said
from nestling.storage import Database, ImportedFile, Judgment
from nestling.text.messages import Message


@dataclass
class FileOfJudgments:
    """What a file says, before any of it is written down.

    Attributes:
        left_out: rows that say nothing, by what they lack.
        problems: rows that are wrong.
    """

    path: Path
    digest: str
    said: list[Said] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[DataError] = field(default_factory=list)


@dataclass
class Imported:
    """What became of a file.

    Attributes:
        new: judgments that were written down, by kind.
        known: how many were here already, from another file.
        before: when the same file was imported, None where it is new.
    """

    path: Path
    new: Counter[str] = field(default_factory=Counter)
    known: int = 0
    before: str | None = None


def read_judgments(path: Path) -> FileOfJudgments:
    """Read a whole file; its problems are collected.

    Raises:
        DataError: it cannot be opened, is broken as a whole, or holds no rows.
    """
    try:
        digest = sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        what = f"this file cannot be read: {error.strerror}."
        raise DataError(what, where=str(path), remedy="Check the path.") from error
    file = FileOfJudgments(path, digest)
    number = 0
    for number, record in enumerate(records(path), 1):
        # A JSON list may stand on one line.
        where = f"{path}:{record.line}" + (f", row {number}" if number != record.line else "")
        try:
            file.said += said_in(record.parsed(where), where)
        except LeftOut as lack:
            file.left_out[str(lack)] += 1
        except DataError as error:
            file.problems.append(error)
    if not number:
        raise DataError("this file holds no rows.", where=str(path), remedy="Write one JSON object a line.")
    return file


def import_judgments(database: Database, files: Sequence[FileOfJudgments]) -> list[Imported]:
    """Write the judgments of files down, all or none of them; what is here already is not written again."""
    with Recorder(database).together() as recorder:
        return [_import(recorder, file) for file in files]


def _import(recorder: Recorder, file: FileOfJudgments) -> Imported:
    done = Imported(file.path)
    with recorder.transaction() as session:
        query = select(ImportedFile).where(ImportedFile.digest == file.digest)
        if (known := session.scalar(query)) is not None:
            done.before = known.created.isoformat(timespec="seconds")
            return done
        rows = dict(_numbered(file.said))
        here = _known_rows(recorder, list(rows))
        done.known = len(here)
        if len(here) == len(rows):
            return done
        row = ImportedFile(digest=file.digest, name=file.path.name)
        session.add(row)
        session.flush()
        held = recorder.record_foreign_answers(
            _answers(said for key, said in rows.items() if key not in here)
        )
        for key, said in rows.items():
            if key not in here:
                recorder.origin = Origin(row.id, key, said.at)
                _record(recorder, said)
                done.new[said.kind] += 1
        del held
    return done


def _answers(said: Iterable[Said]) -> dict[str, tuple[str, Sequence[Message], str, bool]]:
    return {
        name: (answer.version, one.prompt, answer.text, answer.finished)
        for one in said
        for name, answer in zip(_ids(one), one.answers, strict=True)
    }


def _numbered(said: Sequence[Said]) -> Iterator[tuple[str, Said]]:
    """Every judgment with a hash of what it says; what is said twice in one file was said twice."""
    times: Counter[str] = Counter()
    for one in said:
        at = one.at.isoformat() if one.at else None
        means = [one.kind, _ids(one), one.value, one.ranks, one.text, one.rater, at]
        key = _digest(means)
        times[key] += 1
        yield _digest([key, times[key]]), one


def _known_rows(recorder: Recorder, keys: Sequence[str]) -> set[str]:
    here: set[str] = set()
    with recorder.transaction() as session:
        for some in batched(keys, 500):
            found = session.scalars(select(Judgment.import_row).where(Judgment.import_row.in_(some)))
            here |= {key for key in found if key}
    return here


def _record(recorder: Recorder, said: Said) -> None:
    ids = _ids(said)
    client, reason = Person.imported(said.rater) if said.rater else None, said.reason
    match said.kind:
        case "ranking":
            bad = said.value == "all_bad"
            recorder.record_ranking(ids, said.ranks, all_bad=bad, reason=reason, client=client)
        case "vote":
            a, b = ids
            recorder.record_comparison(a, b, said.value, reason=reason, client=client, blinded=said.blinded)
        case "rewrite":
            recorder.record_rewrite(ids[0], said.text, reason=reason, client=client)
        case "demonstration":
            recorder.record_demonstration(ids[0], reason=reason, client=client)
        case "score":
            recorder.record_score(ids[0], said.value, reason=reason, client=client)
        case "thumb":
            recorder.record_thumb(ids[0], said.value, reason=reason, client=client)


def _ids(said: Said) -> list[str]:
    """The same answer has the same id in every file, so that what people say of it meets; one that a row holds twice is
    two."""
    times: Counter[str] = Counter()
    ids = []
    for answer in said.answers:
        key = _digest([said.prompt, answer.text, answer.version, answer.finished])
        times[key] += 1
        ids.append("import-" + _digest([key, times[key]])[:40])
    return ids


def _digest(value: object) -> str:
    return sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
