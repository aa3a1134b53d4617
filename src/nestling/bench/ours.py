"""Our side of a duel: a process that takes turns like the peers' (``peers.turns``)."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nestling.bench.peers.turns import Turns
from nestling.compute.device import Hardware
from nestling.data.packing import walk
from nestling.generation.protocol import Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import LoadedModel, load_model, save_model
from nestling.model.lora import merge_lora
from nestling.model.scorer import load_scorer
from nestling.rewards.terms import LearnedScore, RewardMix, Unfinished
from nestling.text.samples import TokenSample
from nestling.training.planned import PlannedStage
from nestling.training.ppo import PPO, Networks, PPOConfig, Prompt
from nestling.training.reward_model import RankedIds, RewardModelConfig, RewardModelStage
from nestling.training.settings import LoRAConfig
from nestling.training.sft import SFT, SFTConfig

Turn = Callable[[], dict[str, float] | None]

LONG = 1000
"""Steps that a schedule is made for: a duel sees only the first."""


def hardware_of(setting: dict[str, Any]) -> Hardware:
    """What our command line has chosen."""
    return Hardware("cpu", setting["dtype"], setting["threads"], setting["workers"]).apply()


def scratch(setting: dict[str, Any]) -> Path:
    """A folder that lives as long as this process."""
    return Path(setting["scratch"])


def endless(model: LoadedModel) -> LoadedModel:
    """The model without end tokens, so that every answer has its full length, as the peers'."""
    model.tokenizer.eos_ids = frozenset()
    return model


def ppo(setting: dict[str, Any]) -> Turn:
    """One iteration of PPO: ``critic`` "shared" or "separate", ``lora`` a rank or None."""
    hardware = hardware_of(setting)
    model = endless(load_model(setting["model"], hardware.torch_dtype))
    scorer = load_scorer(Path(setting["scorer"]), hardware.torch_dtype)
    lora, workers = setting.get("lora"), hardware.side_by_side()
    config = PPOConfig(
        prompts=len(setting["prompts"]), samples=1, max_new_tokens=setting["answer_tokens"], epochs=1, minibatches=1,
        iterations=LONG, critic=setting["critic"], critic_warmup=0, learning_rate=1e-6, temperature=1.0, kl_coef=0.05,
        lora=LoRAConfig(rank=lora, alpha=2 * lora) if lora else None, transcript_every=LONG, seed=setting["seed"],
    )  # fmt: skip
    reward = RewardMix([(LearnedScore(scorer, workers=workers), 1.0)])
    networks = Networks(model, config, scorer)
    engine = SideBySide(model, workers, max_batch=config.prompts)
    stage = _GivenPrompts(networks, engine, [Prompt([])], reward, config, scratch(setting), workers)
    stage.given = setting["prompts"]
    steps = itertools.count(1)

    def turn() -> dict[str, float]:
        metrics = stage.step(next(steps))
        return {"generating": metrics["generating_share"] * metrics["seconds"]}

    return turn


def race(setting: dict[str, Any]) -> Turn:
    """One iteration of PPO that is to learn something; policies are saved on the way, outside the clock."""
    hardware = hardware_of(setting)
    model = load_model(setting["model"], hardware.torch_dtype)
    scorer, workers = load_scorer(Path(setting["scorer"]), hardware.torch_dtype), hardware.side_by_side()
    config = PPOConfig(
        iterations=LONG, max_new_tokens=setting["answer_tokens"], temperature=0.7, minibatches=1, critic_warmup=0,
        transcript_every=LONG, seed=setting["seed"], **setting["ours"],
    )  # fmt: skip
    reward = RewardMix([(LearnedScore(scorer, workers=workers), 1.0), (Unfinished(), -1.0)])
    engine = SideBySide(model, workers, max_batch=setting["answers"])
    networks = Networks(model, config, scorer)
    stage = _GivenPrompts(networks, engine, [Prompt([])], reward, config, Path(setting["saves"]), workers)
    stage.given = setting["prompts"]
    steps = itertools.count(1)

    def turn() -> dict[str, float]:
        start, number = time.perf_counter(), next(steps)
        stage.step(number)
        seconds = time.perf_counter() - start
        if number % setting["save_every"] == 0:
            folder = Path(setting["saves"]) / str(number)
            folder.mkdir()
            save_model(folder, _merged(model) if config.lora else model)
        return {"seconds": seconds}

    return turn


def _merged(model: LoadedModel) -> LoadedModel:
    """A copy with its adapters merged; training goes on with them."""
    decoder = copy.deepcopy(model.decoder)
    merge_lora(decoder)
    return replace(model, decoder=decoder)


class _GivenPrompts(PPO):
    """PPO on prompts that are token ids already, in their own endless walk."""

    given: list[list[int]]

    def asked(self, step: int) -> list[tuple[Prompt, list[int]]]:
        count = self.config.prompts
        chosen = walk(len(self.given), self.config.seed, step * count, (step + 1) * count)
        return [(self.prompts[0], self.given[at]) for at in chosen]

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Where answers have a fixed length nothing ends, which is no collapse."""


def decode(setting: dict[str, Any]) -> Turn:
    """Answer ``prompts`` with ``answer_tokens`` each, and with one, to tell decoding from reading the prompt."""
    hardware = hardware_of(setting)
    model = endless(load_model(setting["model"], hardware.torch_dtype))
    engine = SideBySide(model, hardware.side_by_side(), max_batch=len(setting["prompts"]))
    seeds = itertools.count()

    def answer(tokens: int) -> float:
        start = time.perf_counter()
        sampling = [
            Sampling(temperature=1.0, max_tokens=tokens, seed=next(seeds)) for _ in setting["prompts"]
        ]
        engine.generate_ids(setting["prompts"], sampling)
        return time.perf_counter() - start

    return lambda: {"decoding": -answer(1) + answer(setting["answer_tokens"])}


def sft(setting: dict[str, Any]) -> Turn:
    """One optimizer step on the next list of conversations, packed."""
    hardware = hardware_of(setting)
    model = load_model(setting["model"], hardware.torch_dtype)
    batches = [[TokenSample(row["ids"], row["mask"]) for row in step] for step in setting["conversations"]]
    longest = max(sum(len(row.ids) for row in step) for step in batches)
    config = SFTConfig(learning_rate=1e-6, row_tokens=longest, batch_tokens=longest, epochs=1)
    flat = [row for step in batches for row in step]
    stage = SFT(model.decoder, flat, flat[:1], config, scratch(setting), hardware.side_by_side())
    return _steps(stage, batches)


def reward_model(setting: dict[str, Any]) -> Turn:
    """One optimizer step on the next list of rankings."""
    hardware = hardware_of(setting)
    scorer = load_scorer(Path(setting["scorer"]), hardware.torch_dtype)
    batches = [
        [RankedIds(r["prompt"], r["completions"], list(range(1, 1 + len(r["completions"])))) for r in step]
        for step in setting["rankings"]
    ]
    longest = max(sum(map(len, step)) for step in batches)
    config = RewardModelConfig(learning_rate=1e-6, row_tokens=longest, batch_tokens=longest, epochs=1)
    flat = [ranking for step in batches for ranking in step]
    stage = RewardModelStage(scorer, flat, flat[:1], config, scratch(setting), hardware.side_by_side())
    return _steps(stage, batches)


def _steps(stage: PlannedStage[Any, Any], batches: Sequence[Sequence[object]]) -> Turn:
    """Updates on one batch after another, as the peers take them, over and over; the stage's items are theirs."""
    starts = itertools.accumulate(map(len, batches), initial=0)
    rows = itertools.cycle([list(range(first, end)) for first, end in itertools.pairwise(starts)])

    def turn() -> None:
        stage.update([next(rows)], 1.0)

    return turn


KINDS = {"ppo": ppo, "race": race, "decode": decode, "sft": sft, "reward_model": reward_model}


def main() -> None:
    """``python -m nestling.bench.ours SETTING.json``: the setting's ``kind`` says what a turn is."""
    turns = Turns()
    torch.manual_seed(turns.setting["seed"])
    with tempfile.TemporaryDirectory() as scratch:
        turns.take(KINDS[turns.setting["kind"]](turns.setting | {"scratch": scratch}))


if __name__ == "__main__":
    main()
