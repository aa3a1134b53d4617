"""From content to items: templates times rows, in a fixed, evenly spread order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

from nestling.data.curriculum.filling import fill, fill_value
from nestling.data.curriculum.schema import Behaviour, Curriculum, Row, Split, Template, load
from nestling.errors import DataError
from nestling.text.messages import Message, Role


@dataclass(frozen=True)
class Item:
    """One prompt with its check.

    ``pair`` is equal for twins (a false and a true premise about one fact, say). ``answers`` (good) and
    ``worse`` (best first) are there for the training split only, so that no test answer can be learned.
    """

    id: str
    behaviour: str
    split: Split
    template: str
    messages: tuple[Message, ...]
    check: dict[str, Any]
    blind: bool = False
    entity: str | None = None
    pair: str | None = None
    answers: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()


def split_of(entity: str) -> Split:
    """The split an entity belongs to, in every table: 50 % train, 20 % gate, 30 % test, by SHA-256."""
    share = int.from_bytes(sha256(entity.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.5 else "gate" if share < 0.7 else "test"


def items(
    split: Split,
    seed: int,
    behaviours: Iterable[str] | None = None,
    per_behaviour: int | None = None,
    assistant: str = "Nestling",
    curriculum: Curriculum | None = None,
) -> list[Item]:
    """The items of a split, deterministic in its arguments.

    Args:
        behaviours: their names; None means all.
        per_behaviour: at most so many of each, spread over templates first, then rows; None means all.
        assistant: fills the slot ``{assistant}``.
        curriculum: other content than the packaged one.

    Raises:
        DataError: for an unknown behaviour or a slot that nothing fills.
    """
    content = curriculum or load()
    chosen: list[Item] = []
    for name in content.behaviours if behaviours is None else behaviours:
        if name not in content.behaviours:
            known = ", ".join(content.behaviours)
            raise DataError(
                f"there is no behaviour {name!r}.", where="behaviours", remedy=f"Use one of {known}."
            )
        chosen += islice(_items_of(content, name, split, seed, assistant), per_behaviour)
    return chosen


def demonstrations(
    seed: int,
    counts: Mapping[str, int],
    assistant: str = "Nestling",
    curriculum: Curriculum | None = None,
) -> list[list[Message]]:
    """Training conversations, each ending with a written good answer, shuffled.

    Args:
        counts: how many of each behaviour. A prompt comes again, with another of its answers, only after all
            prompts were used; a behaviour with fewer different conversations gives what it has.
    """
    conversations = []
    for name, count in counts.items():
        pool = items("train", seed, [name], count, assistant, curriculum)
        conversations += list(islice(_answered(pool, seed), count))
    random.Random(f"{seed}/demonstrations").shuffle(conversations)
    return conversations


def _answered(pool: list[Item], seed: int) -> Iterator[list[Message]]:
    shuffled = [random.Random(f"{seed}/{i.id}").sample(i.answers, len(i.answers)) for i in pool]
    for turn in range(max(map(len, shuffled), default=0)):
        for item, answers in zip(pool, shuffled, strict=True):
            if turn < len(answers):
                yield [*item.messages, Message(role="assistant", content=answers[turn])]


def _items_of(content: Curriculum, name: str, split: Split, seed: int, assistant: str) -> Iterator[Item]:
    behaviour = content.behaviours[name]
    templates = _shuffled(content.templates[name][split], f"{seed}/{split}/templates")
    table = content.rows(name)
    if table is None:
        rows: list[Row | None] = [None]
    else:
        # Keyed by neither behaviour nor table: twins must come in the same order.
        rows = [*_shuffled([row for row in table if split_of(row.key) == split], f"{seed}/{split}/rows")]
    tables = {b.table for b in content.behaviours.values() if b.pair == behaviour.pair}
    for number, template, row in _spread(templates, rows):
        item_id = "/".join([name, template.id] + ([row.id] if row else []))
        # Twins from different tables have no common row: they share the template and the turn it came in.
        row_key = (row.id if row else "") if len(tables) == 1 else str(number)
        pair = f"{behaviour.pair}/{template.id}/{row_key}" if behaviour.pair else None
        yield _item(behaviour, split, template, row, item_id, pair, assistant)


def _shuffled(entries: list[Any], key: str) -> list[Any]:
    return random.Random(key).sample(entries, len(entries))


def _spread(templates: list[Template], rows: list[Row | None]) -> Iterator[tuple[int, Template, Row | None]]:
    """Every template with every row once; any prefix uses templates evenly, then rows evenly."""
    if not templates or not rows:
        return
    cycle = len(rows) // math.gcd(len(rows), len(templates))
    for number in range(len(rows)):
        for position, template in enumerate(templates):
            # Stepping by len(templates) walks the rows; each full cycle shifts by one so that none repeats.
            yield number, template, rows[(number * len(templates) + position + number // cycle) % len(rows)]


def _item(
    behaviour: Behaviour,
    split: Split,
    template: Template,
    row: Row | None,
    item_id: str,
    pair: str | None,
    assistant: str,
) -> Item:
    fields: dict[str, Any] = {"assistant": assistant}
    if row:
        fields |= {"id": row.id, "entity": row.entity or row.id} | row.__pydantic_extra__
    fields |= {slot: fill_value(text, fields, item_id) for slot, text in behaviour.slots.items()}
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [
        Message(role=roles[i % 2], content=fill(text, fields, item_id))
        for i, text in enumerate(template.turns)
    ]
    if template.system:
        messages.insert(0, Message(role="system", content=fill(template.system, fields, item_id)))
    answers = (row and row.answers) or template.answers or behaviour.answers
    worse = (row and row.worse) or template.worse or behaviour.worse
    if split != "train":
        answers = worse = []
    # Which of the leads comes first is the item's own: twins and splits see all of them.
    turn = int.from_bytes(sha256(item_id.encode()).digest()[:4], "big")
    leads = [behaviour.leads[(turn + number) % len(behaviour.leads)] for number in range(len(answers))]
    return Item(
        id=item_id,
        behaviour=behaviour.behaviour,
        split=split,
        template=template.id,
        blind=template.blind,
        messages=tuple(messages),
        check=fill_value(template.check or behaviour.check, fields, item_id),
        entity=row.key if row else None,
        pair=pair,
        answers=tuple(fill(lead + text, fields, item_id) for lead, text in zip(leads, answers, strict=True)),
        worse=tuple(fill(text, fields, item_id) for text in worse),
    )
