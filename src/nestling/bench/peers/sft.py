"""``transformers`` Trainer on conversations: a turn is one optimizer step.

``packed`` lays the conversations of a step end to end by hand, with a mask that keeps them apart; otherwise they are
padded to the longest. Weights and optimizer are in ``dtype``, the fastest it has.
"""

from __future__ import annotations

import tempfile

import torch
from models import policy, prepare
from paced import Paced
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments
from turns import Turns


def padded(rows):
    ids = [torch.tensor(row["ids"]) for row in rows]
    labels = [torch.where(torch.tensor(row["mask"]), i, -100) for row, i in zip(rows, ids, strict=True)]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def packed(rows, dtype):
    lengths = [len(row["ids"]) for row in rows]
    ids = torch.tensor([token for row in rows for token in row["ids"]])
    wanted = torch.tensor([on for row in rows for on in row["mask"]])
    own = torch.block_diag(*[torch.ones(n, n, dtype=torch.bool).tril_() for n in lengths])
    mask = torch.zeros(own.shape, dtype=dtype).masked_fill_(~own.bool(), torch.finfo(dtype).min)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {
        "input_ids": ids[None],
        "attention_mask": mask[None, None],
        "position_ids": positions[None],
        "labels": torch.where(wanted, ids, -100)[None],
    }


def main() -> None:
    turns = Turns()
    s = turns.setting
    dtype = prepare(s)
    batches = s["conversations"]  # one list of conversations a step
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingArguments(
            folder, per_device_train_batch_size=1, max_steps=1000, learning_rate=1e-6, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=True, remove_unused_columns=False, seed=s["seed"], logging_strategy="no",
        )  # fmt: skip
        collate = (lambda rows: packed(rows[0], dtype)) if s.get("packed") else (lambda rows: padded(rows[0]))
        Trainer(policy(s, dtype), config, collate, batches, callbacks=[Paced(turns)]).train()


if __name__ == "__main__":
    main()
