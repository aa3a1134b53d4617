"""What a reward model is worth: accuracy by category and origin, calibration, bias to length, blunders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nestling.model.rows import pack_candidates
from nestling.model.scorer import Scorer
from nestling.workflow.materials import ranked_ids

_BINS = 5
_KINDS = {frozenset(("sft",)): "on_policy", frozenset(("people",)): "people"}
"""By where a pair's two answers came from."""


@torch.no_grad()
def raw_scores(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Raw scores of every answer of every ranking row."""
    out = []
    for row in rows:
        ids = ranked_ids(scorer.tokenizer, row)
        packed = pack_candidates([(ids.prompt, ids.completions)], scorer.decoder.device)
        out.append(scorer(packed.ids, packed.layout, packed.last).tolist())
    return out


def set_normalisation(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> None:
    """Mean and standard deviation of raw scores over the sampled answers of ``rows``, of all when none was sampled."""
    told = [
        (score, source)
        for row, own in zip(rows, raw_scores(scorer, rows), strict=True)
        for score, source in zip(own, row["sources"], strict=True)
    ]
    scores = [s for s, source in told if source != "written"] or [s for s, _ in told]
    scorer.mean = float(np.mean(scores))
    scorer.std = max(float(np.std(scores)), 1e-3)


def reward_report(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the scorer on held-out rankings, as a whole and by category.

    A pair counts as on-policy when both answers were sampled from the model, as people's when people compared them; the
    others hold a written one. Of each kind: how many pairs, the share in the right order, and the calibration error
    (``calibration_error``); ``calibration`` has its bins.
    """
    pairs: list[dict[str, Any]] = []
    lengths, scores = [], []
    for row, own in zip(rows, raw_scores(scorer, rows), strict=True):
        lengths += [len(text) for text in row["completions"]]
        scores += own
        for a, b in (
            (a, b) for a in range(len(own)) for b in range(len(own)) if row["ranks"][a] < row["ranks"][b]
        ):
            pairs.append(
                {
                    "category": row["category"],
                    "kind": _KINDS.get(frozenset((row["sources"][a], row["sources"][b])), "with_written"),
                    "margin": own[a] - own[b],
                    "row": row,
                    "answers": (a, b),
                }
            )
    categories = sorted({p["category"] for p in pairs})
    kinds = _kinds(pairs)
    return {
        "rankings": len(rows),
        **{kind: _quality(some) for kind, some in kinds.items()},
        "by_category": {
            category: {
                kind: _quality(some)
                for kind, some in _kinds([p for p in pairs if p["category"] == category]).items()
            }
            for category in categories
        },
        "calibration": {kind: calibration([p["margin"] for p in some]) for kind, some in kinds.items()},
        "correlation_with_length": float(np.corrcoef(lengths, scores)[0, 1]) if np.std(scores) > 0 else 0.0,
        "most_confidently_wrong": [
            {
                "prompt": p["row"]["prompt"][-1]["content"],
                "better": p["row"]["completions"][p["answers"][0]],
                "worse": p["row"]["completions"][p["answers"][1]],
                "margin": round(p["margin"], 3),
                "category": p["category"],
            }
            for p in sorted(pairs, key=lambda p: p["margin"])[:10]
            if p["margin"] < 0
        ],
    }


def _kinds(pairs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds = ("on_policy", "with_written", "people")
    return {"all": list(pairs)} | {kind: [p for p in pairs if p["kind"] == kind] for kind in kinds}


def _quality(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    margins = [p["margin"] for p in pairs]
    right = sum(margin > 0 for margin in margins)
    return {
        "pairs": len(pairs),
        "accuracy": right / len(pairs) if pairs else None,
        "calibration_error": calibration_error(calibration(margins)),
    }


def calibration(margins: Sequence[float]) -> list[dict[str, Any]]:
    """Each pair in the direction the scorer favours, in five bins of how sure it was (0.5 to 1): the mean predicted
    probability that the favoured answer is the better one (sigmoid of the raw margin), and how often it is.

    Args:
        margins: the better answer's raw score less the worse one's.
    """
    differences = np.asarray(margins, dtype=float)
    sure, right = 1 / (1 + np.exp(-np.abs(differences))), differences > 0
    numbers = np.minimum((sure - 0.5) * 2 * _BINS, _BINS - 1).astype(int)
    return [
        {
            "from": round(0.5 + number / (2 * _BINS), 1),
            "pairs": int(inside.sum()),
            "predicted": float(sure[inside].mean()),
            "observed": float(right[inside].mean()),
        }
        for number in range(_BINS)
        if (inside := numbers == number).any()
    ]


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017): how far predicted and observed shares are
    apart, each bin by its pairs; None without any.

    Args:
        bins: of ``calibration``.
    """
    if not bins:
        return None
    gaps = [b["pairs"] * abs(b["predicted"] - b["observed"]) for b in bins]
    return float(sum(gaps) / sum(b["pairs"] for b in bins))
