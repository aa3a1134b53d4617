"""A reward model's step with one forward pass for each candidate of a ranking: a turn is one optimizer step.

What libraries for pairs do when there are four candidates. Weights and optimizer are in ``dtype``.
"""

from __future__ import annotations

import torch
from models import prepare, scorer
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    model = scorer(s, prepare(s)).train()
    model.config.pad_token_id = s["pad_id"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    at = 0

    def step() -> None:
        nonlocal at
        rankings = s["rankings"][at % len(s["rankings"])]  # best candidate first
        at += 1
        scores = []
        for k in range(len(rankings[0]["completions"])):
            rows = [torch.tensor(r["prompt"] + r["completions"][k]) for r in rankings]
            ids = pad_sequence(rows, batch_first=True, padding_value=s["pad_id"])
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            scores.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())
        pairs = [
            logsigmoid(scores[i] - scores[j]) for i in range(len(scores)) for j in range(i + 1, len(scores))
        ]
        (-torch.stack(pairs).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    turns.take(step)


if __name__ == "__main__":
    main()
