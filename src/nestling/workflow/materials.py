"""Turning content into what stages train on: token samples, replayed answers, rankings, prompts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nestling.checks import judge
from nestling.checks.verdict import Answer
from nestling.data import curriculum
from nestling.data.curriculum import Item
from nestling.data.formats import Conversation, Ranking, read_rows
from nestling.generation.protocol import Completion, Generator, Request, Sampling, nothing
from nestling.generation.sampler import derive_seed
from nestling.rewards.terms import Attempt, RewardMix, rule_terms
from nestling.text.messages import Message
from nestling.text.samples import TokenSample, training_samples
from nestling.text.tokenizer import Tokenizer
from nestling.training.ppo import Prompt
from nestling.training.reward_model import RankedIds
from nestling.workflow.recipe import DataConfig, RankConfig, Recipe, check_behaviours, file_digest
from nestling.workspace import Tick, atomic, counting

CHUNK = 256
"""Prompts answered in one go and kept: the fewer goes, the fewer of their slow ends (``evaluation.answers``)."""


Make = Callable[[int, int, Callable[[], None]], list[dict[str, Any]]]


def chunked_rows(
    folder: Path, name: str, count: int, make: Make, report: Tick, answers: int = 1
) -> list[dict[str, Any]]:
    """Rows made in chunks of ``CHUNK`` inputs, each chunk kept on disk as soon as it is whole.

    A killed run makes the missing chunks only; as every chunk is always made of the same inputs, the rows come out the
    same. ``make(first, last, answered)`` makes the rows of inputs first..last and calls ``answered`` after each of the
    ``answers`` answers to each of them.
    """
    rows: list[dict[str, Any]] = []
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        path = folder / f"{name}-{first:06d}-{last:06d}.json"
        if not path.exists():
            atomic.write_json(path, make(first, last, counting(report, first, count, answers)))
        rows += json.loads(path.read_text("utf-8"))
        report(last, count)
    return rows


def replay_prompts() -> list[str]:
    """General prompts whose answers the base itself provides."""
    text = (resources.files("nestling.data.curriculum") / "content" / "replay.yaml").read_text("utf-8")
    return [str(prompt) for prompt in yaml.safe_load(text)["prompts"]]


def replay(engine: Generator, count: int, max_tokens: int, folder: Path, report: Tick) -> list[Conversation]:
    """The base's own good answers: greedy, finished, without loops."""
    prompts = replay_prompts()[:count]

    def make(first: int, last: int, answered: Callable[[], None]) -> list[dict[str, Any]]:
        asked: list[list[Message]] = [[{"role": "user", "content": p}] for p in prompts[first:last]]
        sampling = Sampling(temperature=0, max_tokens=max_tokens)
        done = engine.generate([Request(messages, sampling) for messages in asked], answered)
        return [
            {"messages": [*messages, {"role": "assistant", "content": c.text.strip()}]}
            for messages, c in zip(asked, done, strict=True)
            if c.text.strip()
            and judge({"name": "ends_without_loop"}, Answer(messages, c.text, c.finished)).passed
        ]

    return [
        Conversation(row["messages"]) for row in chunked_rows(folder, "replay", len(prompts), make, report)
    ]


def answer_only(samples: Sequence[TokenSample]) -> TokenSample:
    """The last sample with only its last answer trained: earlier assistant turns of a demonstration are scripted,
    and some are mistakes that the last turn mends."""
    sample = samples[-1]
    mask = list(sample.loss_mask)
    end = max(i for i, wanted in enumerate(mask) if wanted)
    start = end
    while start > 0 and mask[start - 1]:
        start -= 1
    return TokenSample(sample.ids, [start <= i <= end for i in range(len(mask))])


@dataclass(frozen=True)
class SFTMaterial:
    """Samples for fine-tuning and for validation, a hash of every source, and of each of the user's files the length
    in tokens of its rows' longest samples."""

    train: list[TokenSample]
    validation: list[TokenSample]
    hashes: dict[str, str]
    own: dict[str, list[int]] = field(default_factory=dict)

    def fates(self, limit: int) -> Iterator[str]:
        """What becomes of the rows of each file where a sample may have ``limit`` tokens."""
        for name, lengths in self.own.items():
            left_out = [number for number, length in enumerate(lengths, 1) if length > limit]
            kept = len(lengths) - len(left_out)
            told = f"{Path(name).name}: {kept} of {len(lengths)} conversations are learned from."
            if left_out:
                shown = ", ".join(map(str, left_out[:10])) + (" and more" if len(left_out) > 10 else "")
                told += f" Longer than {limit} tokens and left out: number {shown}."
            yield told


def sft_material(
    data: DataConfig, seed: int, assistant: str, tokenizer: Tokenizer, replayed: Sequence[Conversation]
) -> SFTMaterial:
    """Demonstrations of the curriculum, replayed answers and the user's own files, as token samples."""
    demonstrations = curriculum.demonstrations(seed, data.demonstrations, assistant)
    samples = [answer_only(training_samples(tokenizer, c, "demonstration")) for c in demonstrations]
    hashes = {"curriculum": digest(demonstrations)}
    if replayed:
        hashes["replay"] = digest([c.messages for c in replayed])
    for number, conversation in enumerate(replayed):
        samples += training_samples(tokenizer, conversation.messages, f"replay {number}")
    own: list[TokenSample] = []
    lengths: dict[str, list[int]] = {}
    for name in data.files:
        lengths[name] = []
        for number, row in enumerate(read_rows(Path(name), Conversation), 1):
            found = training_samples(tokenizer, row.messages, f"{name}:{number}")
            lengths[name].append(max(len(sample.ids) for sample in found))
            own += found
        hashes[_unused(Path(name).name, hashes)] = file_digest(Path(name))
    key = lambda sample: json.dumps(sample.ids)
    train, validation = split_off(samples, data.validation_share, key)
    own_train, own_validation = split_off(own, data.validation_share, key)
    train += max(1, data.own_repeats) * own_train
    return SFTMaterial(train, validation + own_validation, hashes, lengths)


def _unused(name: str, known: Collection[str]) -> str:
    """The name, with a number behind it where another file is called so."""
    names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
    return next(unused for unused in names if unused not in known)


def rehearsal(data: DataConfig, seed: int, assistant: str, tokenizer: Tokenizer) -> SFTMaterial:
    """Demonstrations that PPO may take into its updates: fine-tuning's without the replayed answers, and without those
    of held-out behaviours, so that what PPO gains on these is transfer."""
    known = curriculum.load().behaviours
    counts = {name: count for name, count in data.demonstrations.items() if not known[name].held_out}
    data = data.model_copy(update={"demonstrations": counts})
    return sft_material(data, seed, assistant, tokenizer, [])


def split_off(items: Sequence[Any], share: float, key: Callable[[Any], str]) -> tuple[list[Any], list[Any]]:
    """(kept, split off): about ``share`` of the items, chosen by a hash of their key, so equal keys stay together."""
    limit = int(share * 2**32)
    chosen = [int.from_bytes(sha256(key(item).encode()).digest()[:4], "big") < limit for item in items]
    return (
        [item for item, held in zip(items, chosen, strict=True) if not held],
        [item for item, held in zip(items, chosen, strict=True) if held],
    )


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def ranking_items(recipe: Recipe, counts: Mapping[str, int]) -> list[Item]:
    """Prompts to rank answers to: others than those that were demonstrated, as far as there are enough."""
    return training_items(counts, recipe.seed, recipe.assistant, after=[recipe.data.demonstrations])


def ppo_items(recipe: Recipe) -> list[Item]:
    """Prompts for PPO: others than those demonstrated or ranked, as far as there are enough."""
    after = [recipe.data.demonstrations, recipe.rank.prompts]
    return training_items(recipe.ppo_prompts, recipe.seed, recipe.assistant, after)


def training_items(
    counts: Mapping[str, int], seed: int, assistant: str, after: Sequence[Mapping[str, int]] = ()
) -> list[Item]:
    """Training items of the curriculum, so many of each behaviour; never of a held-out one.

    Those that earlier uses took (``after``: how many of each behaviour) come last.
    """
    check_behaviours(counts, "prompts", rewarded=True)
    chosen: list[Item] = []
    for name, count in counts.items():
        used = sum(earlier.get(name, 0) for earlier in after)
        pool = curriculum.items("train", seed, [name], used + count, assistant)
        chosen += pool[-count:] if count else []
    return chosen


def ppo_prompts(items: Sequence[Item]) -> list[Prompt]:
    return [Prompt(list(item.messages), item.check) for item in items]


# Rankings -----------------------------------------------------------------------------------------------------------

REDRAWS = 4
"""How often an item's samples are drawn again while too few of them differ."""


def rank_answers(
    engine: Generator, items: Sequence[Item], config: RankConfig, folder: Path, report: Tick
) -> list[dict[str, Any]]:
    """Sample answers to every item, put written ones beside them, and rank all by the checks and rules.

    Rows are ``ranking`` rows plus ``utilities`` (what the ranks came from). Where samples repeat one another, more are
    drawn; an item that is still short of different answers (``enough``) after ``REDRAWS`` further draws has no row.
    """

    def make(first: int, last: int, answered: Callable[[], None]) -> list[dict[str, Any]]:
        chosen = items[first:last]
        drawn: list[list[Completion]] = [[] for _ in chosen]
        rows: list[dict[str, Any]] = [{} for _ in chosen]
        short, count = list(range(len(chosen))), answered
        for _ in range(1 + REDRAWS):
            asked = [(i, len(drawn[i]) + k) for i in short for k in range(config.samples)]
            requests = [
                Request(chosen[i].messages, config.sampling(derive_seed(config.seed, first + i, k)))
                for i, k in asked
            ]
            for (i, _), completion in zip(asked, engine.generate(requests, count), strict=True):
                drawn[i].append(completion)
            for i in short:
                rows[i] = ranked(chosen[i], drawn[i], config)
            short, count = [i for i in short if not enough(rows[i])], nothing
        return [row for row in rows if enough(row)]

    return chunked_rows(folder, "rankings", len(items), make, report, config.samples)


def enough(row: Mapping[str, Any]) -> bool:
    """At least four different answers, at least half of them sampled."""
    sampled = row["sources"].count("sft")
    return len(row["sources"]) >= 4 and 2 * sampled >= len(row["sources"])


def ranked(item: Item, sampled: Sequence[Completion], config: RankConfig) -> dict[str, Any]:
    """One ranking: equal utilities tie, and an answer that was sampled twice counts once."""
    written = [*item.answers[:1], *item.worse][: config.written]
    answers = list(dict.fromkeys((c.text.strip(), c.finished, "sft") for c in sampled))
    answers += [(text, True, "written") for text in written if text not in {a[0] for a in answers}]
    mix = RewardMix(rule_terms())
    attempts = [
        Attempt(item.messages, Completion(text, "stop" if finished else "length", 0, 0), item.check)
        for text, finished, _ in answers
    ]
    utilities = [round(u, 3) for u in mix(attempts)[0]]
    order = sorted(set(utilities), reverse=True)
    row = Ranking(
        prompt=list(item.messages),
        completions=tuple(a[0] for a in answers),
        ranks=tuple(order.index(u) + 1 for u in utilities),
        sources=tuple(a[2] for a in answers),
        category=item.behaviour,
        finished=tuple(a[1] for a in answers),
        template=item.template,
    )
    return asdict(row) | {"utilities": utilities}


def answer_ids(tokenizer: Tokenizer, row: Mapping[str, Any], answer: str) -> tuple[list[int], list[int]]:
    """(prompt, answer) of a judged answer as token ids; one that ended by itself, or is empty, has its end token."""
    ended = row.get("finished", True) or not answer
    return tokenizer.render_prompt(row["prompt"]), tokenizer.encode_answer(answer) + (
        [tokenizer.eos_id] if ended else []
    )


def ranked_ids(tokenizer: Tokenizer, row: Mapping[str, Any]) -> RankedIds:
    """A ranking row as token ids; finished answers carry their end token, and so do empty ones."""
    finished = row.get("finished") or [True] * len(row["completions"])
    completions = [
        tokenizer.encode_answer(text) + ([tokenizer.eos_id] if done or not text else [])
        for text, done in zip(row["completions"], finished, strict=True)
    ]
    return RankedIds(
        tokenizer.render_prompt(row["prompt"]), completions, list(row["ranks"]), row.get("weight", 1.0)
    )


def ranking_split(
    rows: Sequence[dict[str, Any]], share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, validation), split by template so that no validation prompt shares its wording with a training one."""
    return split_off(
        rows, share, key=lambda row: f"{row.get('category')}/{row.get('template') or row['prompt']}"
    )
