"""Who fights whom, over what, and what is asked of us."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nestling.bench.duel import Contender, Duel, Outcome
from nestling.bench.roofline import Peaks, Shape, decode_seconds, ppo_flops, step_flops
from nestling.bench.setting import (
    ANSWER_TOKENS,
    DECODE_PROMPT,
    DECODE_TOKENS,
    PPO_PROMPTS,
    PROMPT_TOKENS,
    Material,
)

LORA_RANK = 16


class Matches:
    """Builds the duels of a run.

    Args:
        material: weights and token ids.
        python: the interpreter of the peers' environment.
    """

    def __init__(self, material: Material, python: Path) -> None:
        self.material, self.python = material, python

    def all(self) -> list[Duel]:
        """Every duel."""
        return [*self.ppo(), *self.decode(), *self.llama_cpp(), *self.supervised()]

    def ppo(self) -> Iterator[Duel]:
        prompts = {"prompts": self.material.windows(PPO_PROMPTS, PROMPT_TOKENS)}
        dtype = self.material.hardware.dtype
        best = "bf16" if dtype == "bfloat16" else "fp32"
        ours = lambda name, **more: self._ours(f"ppo-{name}", {"kind": "ppo", **prompts, **more})
        trl = lambda name, **more: self._peer(f"trl-ppo-{name}", "trl_ppo.py", prompts | more)
        shared, separate = ours("shared", critic="shared"), ours("separate", critic="separate")
        adapters = ours("lora", critic="shared", lora=LORA_RANK)
        shipped = trl("shipped", shipped=True, dtype="float32")
        tokens = PPO_PROMPTS * (PROMPT_TOKENS + ANSWER_TOKENS)
        yield Duel(
            "PPO iteration, shared trunk / TRL as shipped", shared, shipped, least=5, aim=7, tokens=tokens
        )
        yield Duel(f"PPO iteration, shared trunk / TRL all {best}", shared, trl(best), least=2.3, aim=2.8,
                   tokens=tokens)  # fmt: skip
        yield Duel(f"PPO iteration, separate critic / TRL all {best}", separate, trl(best), least=1.4, aim=1.8,
                   tokens=tokens)  # fmt: skip
        yield Duel("PPO iteration, LoRA / TRL with the same LoRA", adapters, trl(f"{best}-lora", lora=LORA_RANK),
                   least=2.5, aim=4, tokens=tokens)  # fmt: skip
        grpo = self._peer("trl-grpo", "trl_grpo.py", prompts)
        yield Duel("PPO iteration, shared trunk / TRL GRPO step", shared, grpo, tokens=tokens)

    def decode(self) -> Iterator[Duel]:
        for rows, least, aim in ((16, 1.8, 2.5), (32, 2.0, 2.5)):
            given = {"prompts": self.material.windows(rows, DECODE_PROMPT), "answer_tokens": DECODE_TOKENS}
            yield Duel(
                f"decoding, {rows} streams / transformers generate",
                self._ours(f"decode-{rows}", {"kind": "decode", **given}),
                self._peer(f"generate-{rows}", "generate.py", given), "decoding", least, aim, rows * DECODE_TOKENS,
            )  # fmt: skip

    def llama_cpp(self) -> Iterator[Duel]:
        """Against the binary that ``make bench-peers`` built, at three precisions; nothing where it is not."""
        folders = [self.python.parents[2] / name / "bin" for name in ("llama.cpp", "llama.cpp-without-amx")]
        binaries = [binary for folder in folders if (binary := folder / "llama-batched-bench").exists()]
        if not binaries:
            return
        for rows in (16, 32):
            given = {"prompts": self.material.windows(rows, DECODE_PROMPT), "answer_tokens": DECODE_TOKENS}
            ours = self._ours(f"decode-{rows}", {"kind": "decode", **given})
            for kind in ("BF16", "Q8_0", "Q4_0"):
                files = {
                    "binaries": [*map(str, binaries)],
                    "gguf": str(self.material.gguf(kind, folders[0])),
                }
                peer = self._peer(f"llama-{kind}-{rows}", "llama_cpp.py", given | files)
                yield Duel(
                    f"decoding, {rows} streams / llama.cpp {kind}",
                    ours,
                    peer,
                    "decoding",
                    tokens=rows * DECODE_TOKENS,
                )

    def supervised(self) -> Iterator[Duel]:
        given = {"conversations": self.material.conversations()}
        tokens = round(
            sum(len(c["ids"]) for step in given["conversations"] for c in step) / len(given["conversations"])
        )
        sft = self._ours("sft", {"kind": "sft", **given})
        padded, packed = (
            self._peer(f"trainer-{how}", "sft.py", given | {"packed": how == "packed"})
            for how in ("padded", "packed")
        )
        yield Duel("SFT step / transformers Trainer, padded", sft, padded, least=2, aim=2, tokens=tokens)
        yield Duel(
            "SFT step / transformers Trainer, packed by hand", sft, packed, least=1.1, aim=1.1, tokens=tokens
        )
        ranked = {"rankings": self.material.rankings()}
        yield Duel(
            "reward-model step, K = 4 / one forward a candidate", self._ours("rm", {"kind": "reward_model", **ranked}),
            self._peer("rm-forwards", "reward_model.py", ranked), least=1.8, aim=1.8,
        )  # fmt: skip

    def _ours(self, name: str, more: dict[str, Any]) -> Contender:
        return Contender(name, "ours", self.material.write(name, more), Path(sys.executable))

    def _peer(self, name: str, program: str, more: dict[str, Any]) -> Contender:
        return Contender(name, program, self.material.write(name, more), self.python)


def roofline(material: Material, outcomes: Sequence[Outcome], peaks: Peaks) -> list[tuple[str, float]]:
    """For each of our steps that fought: the least time at the measured peaks over the time it took."""
    shape, found = Shape.of(material.config), {}
    median = lambda o, part: statistics.median(turn[part] for turn in o.ours)
    for o in outcomes:
        name = o.duel.ours.name
        if name in ("ppo-shared", "ppo-separate"):
            flops = ppo_flops(shape, PPO_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS, name.removeprefix("ppo-"))
            generating, seconds = median(o, "generating"), median(o, "seconds")
            found[f"{name}, whole iteration"] = sum(flops.values()) / peaks.flops / seconds
            found[f"{name}, scoring and update"] = flops["rest"] / peaks.flops / (seconds - generating)
        elif o.duel.measure == "decoding":
            rows = o.duel.tokens // DECODE_TOKENS
            width = material.hardware.torch_dtype.itemsize
            least = decode_seconds(
                shape, peaks, rows, DECODE_TOKENS, DECODE_PROMPT + DECODE_TOKENS / 2, width
            )
            found[f"decoding, {rows} streams"] = least / median(o, "decoding")
        elif name == "sft":
            steps = material.conversations()
            work = [
                step_flops(shape, [len(c["ids"]) for c in step], sum(sum(c["mask"]) for c in step))
                for step in steps
            ]
            found["SFT step"] = statistics.mean(work) / peaks.flops / median(o, "seconds")
    return list(found.items())
