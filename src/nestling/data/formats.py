"""The rows people bring and we write: one JSON object a line, in the shapes OpenAI and TRL use.

| kind | fields |
|---|---|
| conversation | ``{"messages": [{"role", "content"}, ...]}`` |
| preference | ``{"prompt": [...], "chosen": ..., "rejected": ...}`` |
| ranking | ``{"prompt": [...], "completions": [...], "ranks": [...]}``, maybe ``sources``, ``finished``, ``template`` |
| feedback | ``{"prompt": [...], "completion": ..., "label": true}``, or ``"score"`` from 0 to 1 instead of the label |
| prompt | ``{"prompt": [...], "check": {...}}`` |

A prompt is a list of turns that ends with the user's, or text, which is one user turn. An answer is text, or
a list of one assistant turn. Every kind may carry a ``category``. Other fields are ignored. Rows in the shapes of
other programs are told by their fields (``foreign``), and files may be a JSON list or a table as well (``records``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from nestling.checks import HELD_OUT, is_held_out, validate
from nestling.data.foreign import translated
from nestling.data.records import Record, parse_json, records
from nestling.errors import DataError
from nestling.text.messages import Message, require_text, validate_messages
from nestling.workspace import atomic


@dataclass(frozen=True)
class Conversation:
    """A conversation with at least one assistant turn, to learn from."""

    kind: ClassVar[str] = "conversation"
    messages: list[Message]
    category: str = ""


@dataclass(frozen=True)
class Preference:
    """Two different answers to one prompt, the better and the worse."""

    kind: ClassVar[str] = "preference"
    prompt: list[Message]
    chosen: str
    rejected: str
    category: str = ""


@dataclass(frozen=True)
class Ranking:
    """K answers to one prompt; ``ranks[k]`` is 1 for the best, equal numbers are ties.

    ``sources[k]``, when given, says where answer k came from ("sft", "written", ...), ``finished[k]`` whether it ended
    by itself (all did when nothing is said). Rankings of one ``template`` have like prompts.
    """

    kind: ClassVar[str] = "ranking"
    prompt: list[Message]
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    sources: tuple[str, ...] = ()
    category: str = ""
    finished: tuple[bool, ...] = ()
    template: str = ""


@dataclass(frozen=True)
class Feedback:
    """One answer judged by itself: good or not (``label``), or how good (``score``, 0 to 1); one of the two is given.

    ``finished`` says whether it ended by itself.
    """

    kind: ClassVar[str] = "feedback"
    prompt: list[Message]
    completion: str
    label: bool | None = None
    score: float | None = None
    category: str = ""
    finished: bool = True


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt and the check its answer must pass."""

    kind: ClassVar[str] = "prompt"
    prompt: list[Message]
    check: dict[str, Any]
    category: str = ""


Row = Conversation | Preference | Ranking | Feedback | CheckedPrompt
RowType = TypeVar("RowType", Conversation, Preference, Ranking, Feedback, CheckedPrompt)


@dataclass(frozen=True)
class Problem:
    """What is wrong on a line (counted from 1; 0 is the file as a whole), and what to do about it."""

    line: int
    what: str
    remedy: str


@dataclass
class FileReport:
    """What a file holds.

    Attributes:
        kind: of the first good row, None when there was none.
        rows: good rows of the file's kind, without repetitions.
        problems: everything that is wrong.
        shapes: good rows by the shape they were written in; ours is "".
        clean: those rows.
    """

    kind: str | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    clean: list[Row] = field(default_factory=list)


def read_rows(path: Path | str, row_type: type[RowType]) -> Iterator[RowType]:
    """The rows of a file, one at a time; blank lines are passed over.

    Raises:
        DataError: naming ``FILE:LINE``, at the first line that is wrong; or the file is missing or empty.
    """
    empty = True
    for record in records(path):
        where = f"{path}:{record.line}"
        row, _ = as_row(record.parsed(where), where)
        if not isinstance(row, row_type):
            remedy = f"Give a file whose rows have the fields {_listed(_FIELDS[row_type.kind])}."
            raise DataError(f"this is a {row.kind}, not a {row_type.kind}.", where=where, remedy=remedy)
        empty = False
        yield row
    if empty:
        raise _empty(path)


def write_rows(path: Path | str, rows: Iterable[Row]) -> None:
    """Write rows as JSONL; the file is replaced as a whole.

    Raises:
        WorkspaceError: when the place cannot be written.
    """
    atomic.write_text(Path(path), "".join(format_row(row) + "\n" for row in rows))


def check_file(path: Path | str) -> FileReport:
    """Read a whole file and collect every problem instead of stopping at the first.

    Rows of another kind than the first one's, and rows that repeat an earlier one, are problems too.

    Raises:
        DataError: the file cannot be opened, or is no text.
    """
    report = FileReport()
    first_line: dict[bytes, int] = {}
    try:
        for record in records(path):
            problem = _take(report, record, f"{path}:{record.line}", first_line)
            report.problems += [problem] if problem else []
    except DataError as error:  # of the file, which ends there
        line = (error.where or "").removeprefix(f"{Path(path)}:")
        if not line.isdecimal():
            raise
        report.problems.append(Problem(int(line), error.what, error.remedy or ""))
    if not report.rows and not report.problems:
        report.problems.append(_problem(0, _empty(path), str(path)))
    return report


def _take(report: FileReport, record: Record, where: str, first_line: dict[bytes, int]) -> Problem | None:
    """Count one more record; what is wrong with it, if anything."""
    try:
        row, shape = as_row(record.parsed(where), where)
    except DataError as error:
        return _problem(record.line, error, where)
    report.kind = report.kind or row.kind
    if row.kind != report.kind:
        what = f"a {row.kind} in a file of {report.kind}s."
        return Problem(record.line, what, "Keep one kind to a file.")
    digest = hashlib.blake2b(format_row(row).encode(), digest_size=16).digest()
    earlier = first_line.setdefault(digest, record.line)
    if earlier != record.line:
        return Problem(record.line, f"the same row as line {earlier}.", "Keep one of the two.")
    report.rows += 1
    report.shapes[shape] += 1
    report.clean.append(row)
    return None


def parse_row(line: bytes | str, where: str) -> Row:
    """One line of JSONL as the row its fields say it is.

    Raises:
        DataError: naming ``where``: not UTF-8, not JSON, a missing or wrong field.
    """
    return as_row(parse_json(line, where), where)[0]


def as_row(value: Any, where: str) -> tuple[Row, str]:
    """A parsed value as a row, and the shape it was written in; raises as ``parse_row`` does."""
    if not isinstance(value, dict):
        raise DataError(
            f"a row must be a JSON object, not a {type(value).__name__}.",
            where=where,
            remedy="Write one {...} a line, or one list of them.",
        )
    value, shape = translated(value, where)
    # "prompt" stands in three kinds, so it tells none.
    kind = next(
        (k for k, fields in _FIELDS.items() if any(f in value for f in fields if f != "prompt")), None
    )
    if kind is None:
        raise DataError(
            f"the fields {_listed(value) or '(none)'} tell no kind of row.",
            where=where,
            remedy="Write " + "; or ".join(f"{_listed(fields)} ({k})" for k, fields in _FIELDS.items()) + ".",
        )
    missing = [field for field in _FIELDS[kind] if field not in value]
    if missing:
        raise DataError(
            f"{_listed(missing)} missing.", where=where, remedy=f"A {kind} has {_listed(_FIELDS[kind])}."
        )
    category = require_text(value.get("category") or "", "category", where)
    return _PARSERS[kind](value, where, category), shape


def format_row(row: Row) -> str:
    """The row as one line of JSON, which ``parse_row`` gives back."""
    value = asdict(row)
    for name in ("category", "sources", "template"):
        if not value.get(name):
            value.pop(name, None)
    if value.get("finished") in ((), True):  # what is meant where nothing is said
        del value["finished"]
    for name in ("label", "score"):
        if name in value and value[name] is None:
            del value[name]
    for name in ("chosen", "rejected", "completion"):
        if name in value:
            value[name] = [Message(role="assistant", content=value[name])]
    return json.dumps(value, ensure_ascii=False)


def _conversation(value: dict[str, Any], where: str, category: str) -> Conversation:
    messages = _turns(value["messages"], where)
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(
            "no assistant turn to learn from.", where=where, remedy="Add an answer, or drop the row."
        )
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not message["content"].strip():
            raise DataError(
                "an empty answer.", where=f"{where}, turn {number}", remedy="Write one, or drop the row."
            )
    return Conversation(messages, category)


def _preference(value: dict[str, Any], where: str, category: str) -> Preference:
    prompt = _prompt(value["prompt"], where)
    chosen, rejected = (_answer(value[name], name, where) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError("'chosen' and 'rejected' are the same.", where=where, remedy="Drop the row.")
    return Preference(prompt, chosen, rejected, category)


def _ranking(value: dict[str, Any], where: str, category: str) -> Ranking:
    prompt, ranks = _prompt(value["prompt"], where), value["ranks"]
    completions = value["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise DataError(
            "'completions' must be a list of two or more answers.",
            where=where,
            remedy="Write each answer as text, or as a list of one assistant turn.",
        )
    answers = tuple(_answer(c, f"completions[{i}]", where) for i, c in enumerate(completions))
    if not (
        isinstance(ranks, list) and all(type(rank) is int and rank >= 1 for rank in ranks) and 1 in ranks
    ):
        raise DataError(
            f"'ranks' must be whole numbers from 1, the best, not {ranks!r}.",
            where=where,
            remedy="Give equal numbers to ties.",
        )
    sources, finished = value.get("sources", []), value.get("finished", [])
    if not isinstance(sources, list):
        raise DataError(
            "'sources' must be a list.", where=where, remedy="Give one name an answer, or leave it out."
        )
    if not (isinstance(finished, list) and all(type(entry) is bool for entry in finished)):
        raise DataError(
            "'finished' must be a list of true and false.",
            where=where,
            remedy="Give true or false for each answer, or leave it out.",
        )
    for name, entries in (("ranks", ranks), ("sources", sources), ("finished", finished)):
        if len(entries) != len(answers) and (entries or name == "ranks"):
            raise DataError(
                f"{len(answers)} completions but {len(entries)} {name}.",
                where=where,
                remedy="Give one for each.",
            )
    names = tuple(require_text(source, f"sources[{i}]", where) for i, source in enumerate(sources))
    template = require_text(value.get("template") or "", "template", where)
    return Ranking(prompt, answers, tuple(ranks), names, category, tuple(finished), template)


def _feedback(value: dict[str, Any], where: str, category: str) -> Feedback:
    label, score, finished = value.get("label"), value.get("score"), value.get("finished", True)
    if (label is None) == (score is None):
        raise DataError(
            "give 'label' or 'score'.", where=where,
            remedy="A label is true (good) or false; a score lies between 0 (bad) and 1.",
        )  # fmt: skip
    if type(label) not in (bool, type(None)) or type(finished) is not bool:
        name, given = ("finished", finished) if type(label) in (bool, type(None)) else ("label", label)
        raise DataError(
            f"{name!r} must be true or false, not {given!r}.", where=where, remedy="Write true or false."
        )
    if score is not None and not (type(score) in (int, float) and 0 <= score <= 1):
        raise DataError(
            f"'score' must be a number from 0 to 1, not {score!r}.",
            where=where,
            remedy="0 is bad, 1 is good.",
        )
    answer = _answer(value["completion"], "completion", where)
    number = None if score is None else float(score)
    return Feedback(_prompt(value["prompt"], where), answer, label, number, category, finished)


def _checked_prompt(value: dict[str, Any], where: str, category: str) -> CheckedPrompt:
    check = value["check"]
    require_text(json.dumps(check, ensure_ascii=False), "check", where)
    validate(check, where)
    if is_held_out(check):
        raise DataError(
            "a held-out check may neither rank answers nor reward them.",
            where=where,
            remedy=f"Use another than {', '.join(sorted(HELD_OUT))}.",
        )
    return CheckedPrompt(_prompt(value["prompt"], where), check, category)


_FIELDS = {
    Conversation.kind: ("messages",),
    Preference.kind: ("prompt", "chosen", "rejected"),
    Ranking.kind: ("prompt", "completions", "ranks"),
    Feedback.kind: ("prompt", "completion"),
    CheckedPrompt.kind: ("prompt", "check"),
}
_PARSERS: dict[str, Callable[[dict[str, Any], str, str], Row]] = {
    Conversation.kind: _conversation,
    Preference.kind: _preference,
    Ranking.kind: _ranking,
    Feedback.kind: _feedback,
    CheckedPrompt.kind: _checked_prompt,
}


def _turns(value: Any, where: str, *, greeting: bool = False) -> list[Message]:
    turns = validate_messages(value, where, greeting=greeting)
    return [Message(role=turn["role"], content=turn["content"]) for turn in turns]


def _prompt(value: Any, where: str) -> list[Message]:
    if isinstance(value, str):
        value = [Message(role="user", content=value)]
    messages = _turns(value, f"{where}, prompt", greeting=True)  # people vote on such chats too
    if messages[-1]["role"] != "user":
        raise DataError(
            "'prompt' must end with a user turn.", where=where, remedy="Move the answer out of it."
        )
    return messages


def _answer(value: Any, name: str, where: str) -> str:
    if isinstance(value, list):
        if not (len(value) == 1 and isinstance(value[0], dict) and value[0].get("role") == "assistant"):
            raise DataError(
                f"{name!r} must be text or a list of one assistant turn.",
                where=where,
                remedy='Write "..." or [{"role": "assistant", "content": "..."}].',
            )
        value = value[0].get("content")
    return require_text(value, name, where)


def _problem(line: int, error: DataError, where: str) -> Problem:
    place = (error.where or "").removeprefix(where).removeprefix(", ")
    return Problem(line, f"{place}: {error.what}" if place else error.what, error.remedy or "")


def _empty(path: Path | str) -> DataError:
    return DataError("this file holds no rows.", where=str(path), remedy="Write one JSON object a line.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
