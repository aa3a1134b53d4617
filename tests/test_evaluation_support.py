"""Made-up results for tests of comparison, gate and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestling.evaluation.answers import GREEDY
from nestling.evaluation.perplexity import PassageLoss
from nestling.evaluation.results import Results, figures_of
from nestling.evaluation.verdicts import Row


def make_rows(
    behaviour: str, passed: Sequence[bool], templates: int = 12, check: str = "refuses"
) -> list[Row]:
    """One row an outcome, dealt over templates in turn."""
    return [
        Row(
            item=f"{behaviour}/t{number % templates}/{number}",
            behaviour=behaviour,
            template=f"t{number % templates}",
            blind=False,
            entity=None,
            pair=None,
            check={"name": check},
            messages=[{"role": "user", "content": f"Prompt {number} of {behaviour}"}],
            answer="Yes." if outcome else "No.",
            finished=True,
            no_loop=True,
            passed=outcome,
            score=float(outcome),
            reason="made up",
            counts=True,
        )
        for number, outcome in enumerate(passed)
    ]


def make_results(
    name: str,
    outcomes: Mapping[str, Sequence[bool]],
    held_out: Sequence[str] = ("verse", "yes_no"),
    losses: Sequence[float] = (),
    split: str = "gate",
) -> Results:
    """Results of one version: outcomes by behaviour, and nats on passages of 100 tokens."""
    rows = [row for behaviour, passed in outcomes.items() for row in make_rows(behaviour, passed)]
    held_out = [behaviour for behaviour in held_out if behaviour in outcomes]
    return Results(
        name=name,
        identity=name,
        suite="suite",
        split=split,
        seed=0,
        assistant="Nestling",
        reference="base",
        sampling=GREEDY,
        held_out=held_out,
        figures=figures_of(rows, held_out),
        prose=[PassageLoss(passage=f"p{i}", nll=loss, tokens=100) for i, loss in enumerate(losses)],
        rows=rows,
    )


def share(passed: int, n: int = 150) -> list[bool]:
    """``passed`` of ``n`` outcomes true, spread evenly."""
    return [(number + 1) * passed // n > number * passed // n for number in range(n)]
