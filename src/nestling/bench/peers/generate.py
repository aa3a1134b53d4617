"""``transformers`` generate: a turn answers ``prompts`` with ``answer_tokens`` each, and with one, to tell decoding
from reading the prompt."""

from __future__ import annotations

import time

import torch
from models import policy, prepare
from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    model = policy(s, prepare(s)).eval()
    ids = torch.tensor(s["prompts"])

    def answer(tokens: int) -> float:
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        return time.perf_counter() - start

    turns.take(lambda: {"decoding": -answer(1) + answer(s["answer_tokens"])})


if __name__ == "__main__":
    main()
