"""One evaluation from beginning to end: ask, judge, count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nestling.errors import DataError
from nestling.evaluation.answers import GREEDY, ask, remembered
from nestling.evaluation.perplexity import Passage, PassageLoss, passage_losses
from nestling.evaluation.results import Results, figures_of
from nestling.evaluation.suite import Suite
from nestling.evaluation.verdicts import judge_answers, known_questions
from nestling.generation.protocol import Generator, Sampling
from nestling.model.hf_folder import LoadedModel
from nestling.workspace import Tick


def evaluate(
    generator: Generator,
    suite: Suite,
    *,
    name: str,
    identity: str,
    cache: Path,
    base: Results | None = None,
    model: LoadedModel | None = None,
    prose: Sequence[Passage] = (),
    sampling: Sampling = GREEDY,
    progress: Tick | None = None,
) -> Results:
    """Measure a version. Killed at any moment and called again, it goes on and ends with the same results.

    Args:
        name: the version's name, for tables.
        identity, cache, sampling, progress: see ``answers.ask``.
        base: results of the base on the same suite; they decide which prompts count. None: this is the base
            (or there is none), and its own knowledge decides.
        model: the network behind ``generator``, for the losses on ``prose``; an endpoint has none.

    Raises:
        DataError: ``base`` was measured on another suite.
        RequestError, EndpointError: see ``answers.ask``.
    """
    if base is not None and base.suite != suite.hash:
        raise DataError(
            f"{base.name} was measured on another suite.",
            where=name,
            remedy="Evaluate it again with the same split, seed, name and sizes.",
        )
    answers = ask(
        generator, suite.items, identity=identity, cache=cache, sampling=sampling, progress=progress
    )
    rows = judge_answers(suite, answers, None if base is None else known_questions(base.rows))
    losses: list[PassageLoss] = []
    if model is not None and prose:
        key = ["prose 1", identity, [passage.text for passage in prose]]
        found = remembered(cache, key, lambda: [loss.model_dump() for loss in passage_losses(model, prose)])
        losses = [PassageLoss.model_validate(loss) for loss in found]
    held_out = sorted(suite.held_out)
    return Results(
        name=name,
        identity=identity,
        suite=suite.hash,
        split=suite.split,
        seed=suite.seed,
        assistant=suite.assistant,
        reference=name if base is None else base.name,
        sampling=sampling,
        held_out=held_out,
        figures=figures_of(rows, held_out),
        prose=losses,
        rows=rows,
    )
