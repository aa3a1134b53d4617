"""TRL's GRPO: no critic; a turn is one step on as many answers, four to a prompt. Every model in ``dtype``."""

from __future__ import annotations

import tempfile

from datasets import Dataset
from models import policy, prepare, scorer, tokenizer
from paced import Paced
from trl import GRPOConfig, GRPOTrainer
from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    dtype = prepare(s)
    words, count = tokenizer(s), len(s["prompts"])
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=count, num_generations=4, learning_rate=1e-6, beta=0.05,
            max_completion_length=s["answer_tokens"], temperature=1.0, max_steps=1000, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
            seed=s["seed"],
        )  # fmt: skip
        model = policy(s, dtype)
        model.generation_config.eos_token_id = None  # lengths are the same for everybody
        rows = Dataset.from_dict({"prompt": [words.decode(ids) for ids in s["prompts"]]})
        reward = scorer(s, dtype)
        reward.config.pad_token_id = words.pad_token_id
        GRPOTrainer(model, reward, args=config, train_dataset=rows, processing_class=words,
                    reward_processing_classes=words, callbacks=[Paced(turns)]).train()  # fmt: skip


if __name__ == "__main__":
    main()
