"""TRL's PPO learning from a reward model that is given: a turn is one iteration, policies are saved on the way.

The clock stands still while a policy is saved. Answers end with the end token, prompts are padded on the left. What is
trained is kept in fp32 and computes under autocast, as TRL ships it: bf16 weights would round steps of 1e-5 away.
What is frozen is loaded in ``dtype``, and nothing is computed twice.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from models import policy, prepare, scorer, tokenizer
from paced import Paced
from trl.experimental.ppo import PPOConfig, PPOTrainer
from turns import Turns


class Saving(Paced):
    """Saves the policy now and then."""

    def __init__(self, turns: Turns, model, words) -> None:
        super().__init__(turns)
        self.model, self.words = model, words

    def between(self, step: int) -> None:
        if step % self.turns.setting["save_every"] == 0:
            folder = Path(self.turns.setting["saves"]) / str(step)
            self.model.save_pretrained(folder)
            self.words.save_pretrained(folder)


def main() -> None:
    turns = Turns()
    s = turns.setting
    dtype = prepare(s)
    words, model, reward = tokenizer(s), policy(s, torch.float32), scorer(s, dtype)
    words.padding_side = "left"
    # Normalised as in our own runs: the score minus the mean, over the standard deviation.
    normalised = torch.nn.Linear(reward.score.in_features, 1, dtype=dtype)
    normalised.weight.data.copy_(reward.score.weight.data / s["score_std"])
    normalised.bias.data.fill_(-s["score_mean"] / s["score_std"])
    reward.score = normalised
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=s["answers"], num_mini_batches=1,
            response_length=s["answer_tokens"],
            temperature=0.7, total_episodes=s["answers"] * 1000, num_sample_generations=0, stop_token="eos",
            missing_eos_penalty=1.0, lr_scheduler_type="constant", report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, bf16=dtype == torch.bfloat16, gradient_checkpointing=False, seed=s["seed"], **s["trl"],
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": s["prompts"]})
        trainer = PPOTrainer(
            config, words, model, policy(s, dtype), reward, rows, copy.deepcopy(reward).float(), eval_dataset=rows,
            callbacks=[Saving(turns, model, words)],
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
