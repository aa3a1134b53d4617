"""What one version may learn from: people's judgments at one moment, sifted, weighed, split and written down."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import select

from nestling.config import Config
from nestling.feedback.agreement import UNKNOWN_WEIGHT, Rater, raters
from nestling.feedback.export import Row, bad_rows, demonstration_rows, ranking_rows, score_rows, withdrawn
from nestling.feedback.opinions import opinions
from nestling.feedback.people import counts_as
from nestling.storage import ChatSession, Database, DeskItem, Generation, Judgment, RankedAnswer
from nestling.workspace import Lock, atomic

KINDS: dict[str, Callable[[Database], Iterator[Row]]] = {
    "rankings": ranking_rows, "scores": score_rows, "demonstrations": demonstration_rows, "labels": bad_rows,
}  # fmt: skip


class SnapshotRules(Config):
    """Which judgments count, and for how much."""

    held_out_share: float = Field(
        0.25, gt=0, lt=0.9, description="Share of the people whose judgments are kept to measure by."
    )
    most_per_person: int = Field(
        200, ge=1, description="Judgments of one person that are learnt from, the newest."
    )
    most_per_file: int = Field(
        2000, ge=1, description="Judgments of one imported file that are learnt from, the last."
    )
    least_weight: float = Field(
        0.1,
        ge=0,
        le=1,
        description="A person whose reliability is lower is left out (0 is a coin, 1 always right).",
    )
    most_a_minute: int = Field(
        20, ge=1, description="More judgments than this in a minute are nobody's reading."
    )
    most_one_sided: float = Field(
        0.95,
        gt=0.5,
        le=1,
        description="Whoever takes the same side more often than this, of 20 or more, is left out.",
    )


class Manifest(BaseModel):
    """What a snapshot holds and what became of every judgment.

    Attributes:
        rules: as they were applied.
        hashes: SHA-256 of each file.
        fates: how many judgments came to each end.
        judgments: by file, the numbers of the judgments in it.
        people: how many were learnt from, and how many measured by; by prompts where there is only one.
        split: "people", or "prompts" where too few people have judged.
        erased: judgments that were taken back after it was written; it can no longer be replayed.
    """

    name: str
    created: str
    rules: dict[str, Any]
    hashes: dict[str, str]
    fates: dict[str, int]
    judgments: dict[str, list[int]]
    people: dict[str, int]
    split: str
    erased: list[int] = Field(default_factory=list)

    @property
    def new(self) -> set[int]:
        """All judgments it was made of."""
        return {number for numbers in self.judgments.values() for number in numbers}


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk: ``manifest.json``, ``train/`` and ``held_out/`` with a file a kind, ``gold.jsonl``."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.folder / "manifest.json").read_bytes())

    def rows(self, part: str, kind: str) -> list[Row]:
        """Rows of a part ("train", "held_out"), none where there is no such file."""
        return _read(self.folder / part / f"{kind}.jsonl")

    def gold(self) -> list[Row]:
        """Rankings whose order is known, whatever anybody said of them."""
        return _read(self.folder / "gold.jsonl")


def take(
    database: Database, place: Path, rules: SnapshotRules, created: str, anchors: Sequence[Row] = ()
) -> Snapshot:
    """Write a snapshot of everything that counts now below ``place``; the same judgments give the same snapshot.

    Args:
        anchors: rankings that accepted versions were measured by. They stay held out, however the split falls now, and
            nothing that is said of their answers is learnt from.

    Raises:
        WorkspaceError: the place cannot be written.
    """
    with _alone(place):
        # Before anything is read: whoever takes something back and finds no folder here has been heard already.
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)  # they hold what people wrote
        return _take(database, place, rules, created, anchors)


def _take(
    database: Database, place: Path, rules: SnapshotRules, created: str, anchors: Sequence[Row]
) -> Snapshot:
    sifted = _sift(database, rules, anchors)
    gold = list(gold_rows(database))
    content = {f"{part}/{kind}": rows for part, kinds in sifted.parts.items() for kind, rows in kinds.items()}
    texts = {name: _lines(rows) for name, rows in (content | {"gold": gold}).items() if rows}
    hashes = {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}
    decides = [hashes, rules.model_dump(mode="json")]
    name = sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    folder = place / name
    if not folder.exists():
        manifest = Manifest(
            name=name, created=created, rules=rules.model_dump(mode="json"), hashes=hashes, fates=dict(sifted.fates),
            judgments={key: sorted({row["judgment"] for row in rows}) for key, rows in content.items() if rows},
            people=sifted.people, split=sifted.split,
        )  # fmt: skip
        with atomic.new_folder(folder) as partial:
            for key, text in texts.items():
                path = partial / f"{key}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            (partial / "manifest.json").write_text(manifest.model_dump_json(indent=2), "utf-8")
    return Snapshot(folder)


@dataclass
class _Sifted:
    parts: dict[str, dict[str, list[Row]]]
    fates: Counter[str]
    people: dict[str, int]
    split: str


@dataclass
class _Sifting:
    """A row on its way: whose it is, whether it is measured by, and why it is left out, if it is."""

    kind: str
    row: Row
    who: str
    held: bool
    fate: str | None


def _sift(database: Database, rules: SnapshotRules, anchors: Sequence[Row]) -> _Sifted:
    """Every row with its fate: to learn from, to measure by, or left out for a reason."""
    known = {rater.person: rater for rater in raters(list(opinions(database)))}
    sifting, split = _looked_at(database, rules, known, {row["judgment"] for row in anchors})
    measured = {key for row in anchors for key in _answers(row)}
    for one in sifting:
        if one.kind == "rankings" and one.held and one.fate is None:
            measured |= _answers(one.row)
    heaviest = max((rater.weight for rater in known.values()), default=0.0) or UNKNOWN_WEIGHT
    fates: Counter[str] = Counter()
    parts: dict[str, dict[str, list[Row]]] = {
        part: {kind: [] for kind in KINDS} for part in ("train", "held_out")
    }
    people: dict[str, set[str]] = {part: set() for part in parts}
    taken: Counter[str] = Counter()
    seen: set[str] = set()
    for one in sifting:
        content = _digest([one.kind, one.row.get("prompt", ""), _said(one.row), one.who])
        part, fate = "held_out" if one.held else "train", one.fate
        if fate is None and content in seen:
            fate = "said twice"
        if fate is None and part == "train":
            fate = _not_learnt(one, measured, taken[one.who], rules)
        fates[fate or part] += 1
        if fate is None:
            seen.add(content)
            taken[one.who] += part == "train"
            people[part].add(one.who)
            rater = known.get(one.row["session"] or "")
            weight = (rater.weight if rater else UNKNOWN_WEIGHT) / heaviest
            parts[part][one.kind].append(one.row | {"weight": max(round(min(weight, 1.0), 3), 0.001)})
    for part_rows in parts.values():
        for rows in part_rows.values():
            rows.sort(key=lambda row: row["judgment"])
    return _Sifted(parts, fates, {part: len(who) for part, who in people.items()}, split)


def _looked_at(
    database: Database, rules: SnapshotRules, known: Mapping[str, Rater], anchored: set[int]
) -> tuple[list[_Sifting], str]:
    """Every row, the newest first, and what the split is by."""
    kinds = _kinds(database)
    person = lambda row: _who(row, kinds)
    everything = [(kind, row) for kind, rows in KINDS.items() for row in rows(database)]
    people = sorted({person(row) for _, row in everything if "imported" not in row})
    held_people = sum(_share(who) < rules.held_out_share for who in people)
    by_people = len(people) >= _ENOUGH_PEOPLE and 0 < held_people < len(people)
    hurried = _hurried([row for _, row in everything], rules.most_a_minute)
    known_orders, sifting = _gold_judgments(database), []
    for kind, row in sorted(everything, key=lambda pair: -pair[1]["judgment"]):
        who = person(row)
        fate = _refused(row, known.get(row["session"] or ""), rules, hurried)
        if row["judgment"] in known_orders:
            fate = "of a known order, which measures people and versions"
        by = who if by_people else _digest(row.get("prompt") or row["messages"][:-1])
        # Where there are people of our own to measure by, a file must not vouch for what was learnt from it.
        held = _share(by) < rules.held_out_share and not ("imported" in row and by_people)
        sifting.append(_Sifting(kind, row, who, held or row["judgment"] in anchored, fate))
    return sifting, "people" if by_people else "prompts"


def _not_learnt(one: _Sifting, measured: set[str], taken: int, rules: SnapshotRules) -> str | None:
    """Why a row that may count is not learnt from, or None.

    Several people judge one item of the desk: a version that learnt from some of them would only have to remember its
    answers to agree with the others.
    """
    if measured & _answers(one.row):
        return "of answers that others are measured by"
    imported = "imported" in one.row
    if taken >= (rules.most_per_file if imported else rules.most_per_person):
        return "more than one file's share" if imported else "more than one person's share"
    return None


def _answers(row: Row) -> set[str]:
    """The answers that a row speaks of, each with its prompt."""
    if "messages" in row:
        return {_digest([row["messages"][:-1], row["messages"][-1]["content"]])}
    answers = row["completions"] if "completions" in row else [row["completion"]]
    return {_digest([row["prompt"], answer[0]["content"]]) for answer in answers}


def _who(row: Row, kinds: Mapping[str | None, str]) -> str:
    """Whose a row is. All that a file names are one: whoever wrote it could name as many as they liked."""
    imported = row.get("imported")
    return f"(file {imported})" if imported else counts_as(row["session"], kinds.get(row["session"]))


_ENOUGH_PEOPLE = 4
_WAIT_SECONDS = 60.0
_ONE_SIDED_AT_LEAST = 20


def _refused(row: Row, rater: Rater | None, rules: SnapshotRules, hurried: set[int]) -> str | None:
    """Why a row is left out, or None."""
    if row["judgment"] in hurried:
        return "too fast to have been read"
    if rater is not None and rater.first_share is not None and rater.sided >= _ONE_SIDED_AT_LEAST:
        side = max(rater.first_share, 1 - rater.first_share)
        if side > rules.most_one_sided:
            return "by somebody who always takes one side"
    if rater is not None and rater.weight < rules.least_weight and rater.gold + rater.shared >= 5:
        return "by somebody no better than a coin"
    return None


def _hurried(rows: Sequence[Row], most: int) -> set[int]:
    """Judgments made in minutes in which one name made more than anybody can read. When those of a file were made is
    not known."""
    minutes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in rows:
        if row["session"] is not None and "imported" not in row:
            minutes[row["session"], row["at"][:16]].add(row["judgment"])
    return {number for numbers in minutes.values() if len(numbers) > most for number in numbers}


def _gold_judgments(database: Database) -> set[int]:
    """Judgments, of whatever kind and wherever made, of answers whose right order is known."""
    with database.read() as session:
        known = {
            answer.generation_id for item in session.scalars(select(DeskItem)) if item.gold
            for answer in item.answers
        }  # fmt: skip
        about = select(Judgment.id, Judgment.generation_id, Judgment.other_generation_id)
        found = {number for number, *answers in session.execute(about) if not known.isdisjoint(answers)}
        ranked = select(RankedAnswer.judgment_id, RankedAnswer.generation_id)
        return found | {number for number, answer in session.execute(ranked) if answer in known}


def _kinds(database: Database) -> dict[str | None, str]:
    with database.read() as session:
        return {row.id: row.kind for row in session.execute(select(ChatSession.id, ChatSession.kind))}


def gold_rows(database: Database) -> Iterator[Row]:
    """Desk items whose right order is known, as rankings."""
    with database.read() as session:
        for item in session.scalars(select(DeskItem).order_by(DeskItem.id)):
            if item.gold:
                generations: list[Generation] = [answer.generation for answer in item.answers]
                yield {
                    "prompt": item.messages,
                    "completions": [[{"role": "assistant", "content": g.answer}] for g in generations],
                    "ranks": item.gold,
                    "finished": [g.finish_reason == "stop" for g in generations],
                    "template": f"gold {item.id}",
                }


def erase_withdrawn(database: Database, place: Path) -> list[str]:
    """Take what people took back out of every snapshot on disk, as ``erase`` does."""
    with database.read() as session:
        gone = withdrawn(session)
    return erase(place, gone)


def erase(place: Path, judgments: Iterable[int]) -> list[str]:
    """Take judgments out of every snapshot on disk; returns the names of those that can no longer be replayed.

    Raises:
        WorkspaceError: another process holds the snapshots for long, or one cannot be written.
    """
    if not place.exists():
        return []
    with _alone(place):
        return _erase(place, set(judgments))


def _alone(place: Path) -> Lock:
    """Nobody else takes or changes snapshots below ``place`` meanwhile."""
    return Lock(place.parent / "locks" / "snapshots.lock", "the folder of snapshots", _WAIT_SECONDS)


def _erase(place: Path, gone: set[int]) -> list[str]:
    touched = []
    for path in sorted(place.glob("*/manifest.json")):
        snapshot = Snapshot(path.parent)
        manifest = snapshot.manifest
        if not (lost := gone & manifest.new):
            continue
        for key, numbers in manifest.judgments.items():
            if gone & set(numbers):
                file = path.parent / f"{key}.jsonl"
                atomic.write_text(file, _lines(row for row in _read(file) if row["judgment"] not in gone))
        manifest.erased = sorted({*manifest.erased, *lost})
        atomic.write_text(path, manifest.model_dump_json(indent=2))
        touched.append(manifest.name)
    return touched


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    # Not splitlines: people write line separators that JSON leaves as they are.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def _said(row: Row) -> Any:
    return [row.get(key) for key in ("completions", "ranks", "completion", "score", "messages", "label")]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _share(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") / 2**32
