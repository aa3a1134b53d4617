"""TRL's PPO (``trl.experimental.ppo``): a turn is one iteration.

Settings of its own: ``shipped`` leaves its precision and recomputation as they come (weights in fp32, autocast,
gradient checkpointing); otherwise every model is loaded in ``dtype`` and nothing is computed twice. ``lora`` trains
adapters of that rank.
"""

from __future__ import annotations

import tempfile

from datasets import Dataset
from models import policy, prepare, scorer, tokenizer
from paced import Paced
from peft import LoraConfig
from trl.experimental.ppo import PPOConfig, PPOTrainer
from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    dtype = prepare(s)
    count = len(s["prompts"])
    own = {} if s.get("shipped") else {"bf16": False, "gradient_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=count, num_mini_batches=1, num_ppo_epochs=1,
            response_length=s["answer_tokens"], temperature=1.0, total_episodes=count * 1000, kl_coef=0.05,
            num_sample_generations=0, learning_rate=1e-6, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, seed=s["seed"], **own,
        )  # fmt: skip
        lora = s.get("lora")
        rows = Dataset.from_dict({"input_ids": s["prompts"]})
        trainer = PPOTrainer(
            config, tokenizer(s), policy(s, dtype), None if lora else policy(s, dtype), scorer(s, dtype),
            rows, scorer(s, dtype), eval_dataset=rows, callbacks=[Paced(turns)],
            peft_config=LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear") if lora else None,
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
