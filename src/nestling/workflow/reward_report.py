"""What a reward model is worth: accuracy by category and origin, calibration, bias to length, blunders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nestling.model.rows import pack_candidates
from nestling.model.scorer import Scorer
from nestling.workflow.materials import ranked_ids


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
    """Measure the scorer on held-out rankings.

    A pair counts as on-policy when both answers were sampled from the model. ``calibration`` compares the predicted
    probability that the better answer wins (sigmoid of the raw margin) with how often it does, in five bins.
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
                    "on_policy": row["sources"][a] == row["sources"][b] == "sft",
                    "margin": own[a] - own[b],
                    "row": row,
                    "answers": (a, b),
                }
            )
    return {
        "rankings": len(rows),
        "all": _accuracy(pairs),
        "on_policy": _accuracy([p for p in pairs if p["on_policy"]]),
        "with_written": _accuracy([p for p in pairs if not p["on_policy"]]),
        "by_category": {
            category: {
                "all": _accuracy([p for p in pairs if p["category"] == category]),
                "on_policy": _accuracy([p for p in pairs if p["category"] == category and p["on_policy"]]),
            }
            for category in sorted({p["category"] for p in pairs})
        },
        "calibration": _calibration(pairs),
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


def _accuracy(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = sum(p["margin"] > 0 for p in pairs)
    return {"pairs": len(pairs), "accuracy": right / len(pairs) if pairs else None}


def _calibration(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each pair in the direction the scorer favours: how sure it was, and how often it was right."""
    margins = np.array([p["margin"] for p in pairs])
    sure, right = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    bins = []
    for low in np.arange(0.5, 1.0, 0.1):
        inside = (sure >= low) & (sure < low + 0.1 + 1e-9)
        if inside.any():
            bins.append(
                {
                    "from": round(float(low), 1),
                    "pairs": int(inside.sum()),
                    "predicted": float(sure[inside].mean()),
                    "observed": float(right[inside].mean()),
                }
            )
    return bins
