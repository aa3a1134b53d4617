"""Answers for people to judge: sampled from several versions, laid where the reward model is least sure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import select

from nestling.data.curriculum import items, load
from nestling.data.formats import Conversation, Ranking, check_file, read_rows
from nestling.errors import DataError
from nestling.feedback.desk import Desk
from nestling.feedback.people import IMPORTED
from nestling.feedback.recorder import Recorder
from nestling.generation.protocol import Completion, Request, Sampling
from nestling.generation.sampler import derive_seed
from nestling.model.scorer import Scorer, load_scorer
from nestling.rewards.terms import Attempt, LearnedScore
from nestling.storage import Database, Generation, Withdrawal
from nestling.text.messages import Message
from nestling.workflow.materials import digest
from nestling.workflow.stages import Bench
from nestling.workspace import Tick, Version

Prompt = list[Message]
_OWN = "desk-"

GIVEN = "given"
"""Stands for a version where an answer came from a file."""


def recent_prompts(database: Database, count: int) -> list[Prompt]:
    """What people asked last in chats, newest first, every prompt once; of nobody who took back what they said, and
    neither from files nor from the desk itself."""
    with database.read() as session:
        gone = select(Withdrawal.session_id).where(Withdrawal.session_id.is_not(None))
        query = (
            select(Generation.messages)
            .where(Generation.session_id.is_(None) | Generation.session_id.not_in(gone))
            .where(Generation.id.not_like(f"{_OWN}%"), Generation.version.not_like(f"{IMPORTED}%"))
            .order_by(Generation.created.desc())
        )
        found: dict[str, Prompt] = {}
        for messages in session.scalars(query.limit(20 * count)):
            prompt: Any = [Message(role=m["role"], content=m["content"]) for m in messages]
            found.setdefault(digest(prompt), prompt)
        return list(found.values())[:count]


def starter_prompts(count: int, seed: int, assistant: str) -> list[Prompt]:
    """Training prompts of the starter curriculum, of every behaviour in turns."""
    names = [name for name, behaviour in load().behaviours.items() if not behaviour.held_out]
    pools = [items("train", seed, [name], -(-count // len(names)), assistant) for name in names]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*pools))
    return [list(item.messages) for item in turns if item is not None][:count]


def fill(
    bench: Bench, desk: Desk, recorder: Recorder, prompts: Sequence[Prompt], versions: Sequence[Version], answers: int,
    judge: Version | None, sampling: Sampling, tick: Tick,
) -> int:  # fmt: skip
    """Let the versions answer the prompts, ``answers`` to each in turns, and lay the different ones on the desk.

    The less ``judge``, a reward model, tells the best two apart, the sooner they are shown. Returns how many items are
    new; prompts that were answered alike are left out.
    """
    given: list[list[tuple[Version, Sampling, Completion]]] = [[] for _ in prompts]
    for number, version in enumerate(versions):
        engine = bench.engine(bench.load(version))
        asked = [
            (
                at,
                Sampling(
                    sampling.temperature, max_tokens=sampling.max_tokens, seed=derive_seed(at, number, k)
                ),
            )
            for at in range(len(prompts))
            for k in range(number, answers, len(versions))
        ]
        done = engine.generate([Request(prompts[at], how) for at, how in asked], lambda: None)
        for (at, how), completion in zip(asked, done, strict=True):
            given[at].append((version, how, completion))
        tick(number + 1, len(versions))
    scorer = load_scorer(judge.folder, bench.hardware.torch_dtype, bench.hardware.device) if judge else None
    new = 0
    for prompt, candidates in zip(prompts, given, strict=True):
        different = list({c.text.strip(): (v, how, c) for v, how, c in candidates if c.text.strip()}.values())
        if len(different) < 2:
            continue
        source = "fill:" + digest([prompt, [c.text for _, _, c in different]])[:48]
        priority = unsureness(scorer, prompt, [c for _, _, c in different])
        for at, (version, how, completion) in enumerate(different):
            if not _is_there(recorder.database, _id(source, at)):
                recorder.record_generation(
                    version.name,
                    prompt,
                    how,
                    completion,
                    card_hash=version.card_hash,
                    generation_id=_id(source, at),
                )
        ids = [_id(source, at) for at in range(len(different))]
        new += desk.add(source, prompt, ids, priority)
    return new


def unsureness(scorer: Scorer | None, prompt: Prompt, answers: Sequence[Completion]) -> float:
    """Minus the difference of the best two scores, in the reward model's standard deviations; 0 without one."""
    if scorer is None:
        return 0.0
    scores = sorted(LearnedScore(scorer)([Attempt(prompt, answer, None) for answer in answers]), reverse=True)
    return scores[1] - scores[0]


def lay_gold(desk: Desk, recorder: Recorder, path: Path) -> int:
    """Lay rankings whose order is known on the desk, to see how far raters can be relied on; how many are new.

    Raises:
        DataError: a row is wrong, with its line.
    """
    new = 0
    for row in read_rows(path, Ranking):
        source = "gold:" + digest([row.prompt, row.completions])[:48]
        for at, text in enumerate(row.completions):
            if not _is_there(recorder.database, _id(source, at)):
                done = Completion(text, "stop", 0, 0)
                recorder.record_generation(GIVEN, row.prompt, Sampling(), done, generation_id=_id(source, at))
        ids = [_id(source, at) for at in range(len(row.completions))]
        new += desk.add(source, row.prompt, ids, gold=row.ranks)
    return new


def _id(source: str, at: int) -> str:
    return f"{_OWN}{sha256(f'{source}/{at}'.encode()).hexdigest()[:32]}"


def _is_there(database: Database, generation_id: str) -> bool:
    with database.read() as session:
        return session.get(Generation, generation_id) is not None


def prompts_of(path: Path) -> Iterator[Prompt]:
    """The prompts of a file of any kind; of a conversation what stands before its last answer.

    Raises:
        DataError: a row is wrong, with its line.
    """
    report = check_file(path)
    if report.problems:
        first = report.problems[0]
        raise DataError(first.what, where=f"{path}:{first.line}", remedy=first.remedy)
    for row in report.clean:
        if isinstance(row, Conversation):
            last = max(at for at, turn in enumerate(row.messages) if turn["role"] == "assistant")
            yield row.messages[:last]
        else:
            yield row.prompt
