"""What a snapshot's judgments teach: pairs for DPO, labels for KTO, rankings for a reward model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nestling.errors import DataError
from nestling.evaluation.people import compared_pairs
from nestling.feedback.export import Row
from nestling.feedback.snapshot import Snapshot
from nestling.model.hf_folder import LoadedModel
from nestling.text.tokenizer import Tokenizer
from nestling.training.preference import LabelledIds, PairIds, with_foreign_answers
from nestling.workflow import materials


def taught(snapshot: Snapshot, kind: str, tokenizer: Tokenizer) -> list[Row]:
    """The training rows of a kind, without those whose conversation the model's template has no form for."""

    def renders(row: Row) -> bool:
        try:
            tokenizer.render_prompt(row["prompt"] if "prompt" in row else row["messages"][:-1])
        except DataError:
            return False
        return True

    return [row for row in snapshot.rows("train", kind) if renders(row)]


def pairs(snapshot: Snapshot, model: LoadedModel, written: bool) -> list[PairIds]:
    """The training rankings pair by pair; with ``written`` also what people wrote where nothing stands against it."""
    found = []
    for row in snapshot.rows("train", "rankings"):
        for pair in compared_pairs([row], model.tokenizer, model.config.context_length):
            found.append(PairIds(pair.prompt, pair.better, pair.worse, row["weight"]))
    if written:
        for prompt, answer, weight in demonstrations(snapshot, model):
            found.append(PairIds(prompt, answer, [], weight))
    return found


def demonstrations(snapshot: Snapshot, model: LoadedModel) -> Iterator[tuple[list[int], list[int], float]]:
    """What people wrote and no ranking holds: (prompt, answer, weight), as far as the context holds it."""
    ranked = {row["judgment"] for row in snapshot.rows("train", "rankings")}
    for row in taught(snapshot, "demonstrations", model.tokenizer):
        if row["judgment"] not in ranked:
            *asked, written = row["messages"]
            ids = materials.answer_ids(model.tokenizer, {"prompt": asked}, written["content"])
            if len(ids[0]) + len(ids[1]) <= model.config.context_length:
                yield (*ids, row["weight"])


def labels(snapshot: Snapshot, model: LoadedModel, seed: int) -> list[LabelledIds]:
    """Scored answers as good or bad, what people wrote as good, and what was called bad together; of any other ranking
    the best are good and the worst bad."""
    given: list[tuple[list[int], list[int], bool, float]] = []
    for row in taught(snapshot, "scores", model.tokenizer):
        if row["score"] != 0.5:
            prompt, answer = materials.answer_ids(model.tokenizer, row, row["completion"][0]["content"])
            given.append((prompt, answer, row["score"] > 0.5, row["weight"]))
    given += [(prompt, answer, True, weight) for prompt, answer, weight in demonstrations(snapshot, model)]
    for row in taught(snapshot, "labels", model.tokenizer):
        prompt, answer = materials.answer_ids(model.tokenizer, row, row["completion"][0]["content"])
        given.append((prompt, answer, row["label"], row["weight"]))
    for row in taught(snapshot, "rankings", model.tokenizer):
        if row.get("all_bad"):
            continue  # the best of them is not good
        ranked = materials.ranked_ids(model.tokenizer, as_ranking(row))
        best, worst = min(ranked.ranks), max(ranked.ranks)
        for answer, rank in zip(ranked.completions, ranked.ranks, strict=True):
            if best < worst and rank in (best, worst):
                given.append((ranked.prompt, answer, rank == best, ranked.weight))
    longest = model.config.context_length
    fitting = [one for one in given if len(one[0]) + len(one[1]) <= longest]
    return with_foreign_answers(fitting, seed) if fitting else []


def as_ranking(row: Row) -> dict[str, Any]:
    """A person's ranking in the shape of the checks' own."""
    return {
        "prompt": row["prompt"],
        "completions": [answer[0]["content"] for answer in row["completions"]],
        "ranks": row["ranks"],
        "finished": row["finished"],
        "sources": ["people"] * len(row["ranks"]),
        "category": "people",
        "template": "",
        "weight": row["weight"],
    }
