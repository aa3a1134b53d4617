"""What a version is asked: a fixed, hashed set of curriculum items, and direct questions about its facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

from nestling.data.curriculum import Curriculum, Item, load, split_of
from nestling.data.curriculum import items as curriculum_items
from nestling.data.formats import CheckedPrompt, read_rows
from nestling.errors import ConfigError, DataError
from nestling.text.messages import Message

EvaluationSplit = Literal["gate", "test"]

DIRECT_FACTS = "direct_facts"
"""The bare questions behind premises and corrections: they show which facts the base knows."""

ABOUT_FACTS = ("premise_false", "premise_true", "mistake", "hold_truth")
"""Behaviours that make sense only for facts the base knows."""

_SIZES: dict[str, int] = {"gate": 150, "test": 300}
# Of the prompts about facts, those about facts that the base does not know will not count. Which simple facts and which
# everyday requests are answered rightly changes most from one training to another: twice the prompts tell chance from
# loss.
_MORE: dict[str, dict[str, int]] = {
    "gate": dict.fromkeys(ABOUT_FACTS, 220) | {"facts": 300, "everyday": 300},
    "test": dict.fromkeys(ABOUT_FACTS, 490),
}


@dataclass(frozen=True)
class Suite:
    """The items of one evaluation, in a fixed order."""

    split: str
    seed: int
    assistant: str
    items: tuple[Item, ...]
    held_out: frozenset[str]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that decides what is asked and how it is judged."""
        content = [
            self.split,
            self.seed,
            self.assistant,
            sorted(self.held_out),
            [asdict(i) for i in self.items],
        ]
        return sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def build_suite(
    split: EvaluationSplit,
    seed: int = 0,
    *,
    behaviours: Iterable[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    assistant: str = "Nestling",
    curriculum: Curriculum | None = None,
) -> Suite:
    """Choose the items of a split, evenly over templates, then over table rows.

    Args:
        behaviours: their names; None means all.
        sizes: prompts by behaviour. Elsewhere 150 in the gate split (220 for each behaviour about facts, 300 simple
            facts and everyday requests) and 300 in the test split (490 for each behaviour about facts); one without a
            table is asked every distinct prompt.
        assistant: the name the assistant goes by.
        curriculum: other content than the packaged one.

    Raises:
        ConfigError: for the training split.
        DataError: for an unknown behaviour.
    """
    if split not in _SIZES:
        raise ConfigError(f"cannot evaluate on {split!r}.", where="split", remedy="Use 'gate' or 'test'.")
    content, sizes = curriculum or load(), sizes or {}
    names = list(content.behaviours if behaviours is None else behaviours)
    chosen: list[Item] = []
    for name in names:
        default = _MORE[split].get(name, _SIZES[split])
        if name in content.behaviours and content.rows(name) is None:
            size = sizes.get(name)
        else:
            size = sizes.get(name, default)
        chosen += curriculum_items(split, seed, [name], size, assistant, content)
    behind = {direct_question_of(item.id) for item in chosen if item.behaviour in ABOUT_FACTS}
    chosen += [question for question in _direct_questions(content, names, split) if question.id in behind]
    held_out = frozenset(name for name in names if content.behaviours[name].held_out)
    return Suite(split, seed, assistant, tuple(chosen), held_out)


def own_suite(questions: Path, assistant: str = "Nestling") -> Suite:
    """A user's own prompts, each with its check: rows of ``{"prompt", "check", "category"}``; a category is a figure.

    Raises:
        DataError: a row is wrong, with its line.
    """
    rows = list(read_rows(questions, CheckedPrompt))
    items = tuple(
        Item(
            id=f"{questions.name}:{number}",
            behaviour=f"own/{row.category}" if row.category else "own",
            split="test",
            template=str(number),  # nobody knows which of them are worded alike: each counts for itself
            messages=tuple(row.prompt),
            check=row.check,
        )
        for number, row in enumerate(rows, 1)
    )
    return Suite("own", 0, assistant, items, frozenset())


def direct_question_of(item_id: str) -> str:
    """The id of the direct question about the fact that the item ``item_id`` is about."""
    return f"{DIRECT_FACTS}/ask/{item_id.split('/', 2)[2]}"


def _direct_questions(content: Curriculum, names: Iterable[str], split: EvaluationSplit) -> list[Item]:
    """One question a row of the tables behind ``ABOUT_FACTS``; each counts as a template of its own."""
    tables = {content.behaviours[name].table: content.rows(name) for name in names if name in ABOUT_FACTS}
    questions = []
    for table, rows in tables.items():
        for row in rows or []:
            if split_of(row.key) != split:
                continue
            fields = row.__pydantic_extra__
            if "question" not in fields or "answer" not in fields:
                raise DataError(
                    "a fact needs 'question' and 'answer'.", where=f"tables/{table}.yaml: {row.id}"
                )
            item_id = f"{DIRECT_FACTS}/ask/{row.id}"
            questions.append(
                Item(
                    id=item_id,
                    behaviour=DIRECT_FACTS,
                    split=split,
                    template=row.id,
                    messages=(Message(role="user", content=str(fields["question"])),),
                    check={"name": "mentions", "any": fields["answer"]},
                    entity=row.key,
                )
            )
    return questions
