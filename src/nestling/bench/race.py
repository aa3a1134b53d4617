"""Minutes to the same held-out reward: ours and TRL's PPO learn from the same weights and the same reward model."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from nestling.bench.duel import PEERS, Contender, Player
from nestling.bench.report import machine, processor
from nestling.bench.setting import Material
from nestling.compute.device import Hardware
from nestling.data import curriculum
from nestling.evaluation.plots import as_svg, plain
from nestling.generation.protocol import Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import load_model
from nestling.model.scorer import Scorer, load_scorer
from nestling.rewards.terms import Attempt, LearnedScore
from nestling.text.tokenizer import Tokenizer
from nestling.workflow.materials import digest
from nestling.workspace import Version, atomic

ANSWERS, ANSWER_TOKENS, LONGEST_PROMPT = 16, 64, 64
HELD_OUT = 96
SAVE_EVERY = 5
UNFINISHED = 1.0
NOTICED = 0.1

_SIBLINGS: dict[str, Any] = {
    "prompts": 4, "samples": 4, "gae_lambda": 1.0, "kl_coef": 0.05, "warmup_steps": 0, "epochs": 1,
}  # fmt: skip
_CRITIC: dict[str, Any] = {
    "prompts": 16, "samples": 1, "gae_lambda": 0.95, "kl_coef": 0.05, "warmup_steps": 0, "epochs": 1,
    "critic": "separate", "critic_trunk_learning_rate": 1e-4, "critic_learning_rate": 1e-4,
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "4 x 4 answers, 1e-4, 1 epoch": _SIBLINGS | {"learning_rate": 1e-4},
    "4 x 4 answers, 2e-4, 1 epoch": _SIBLINGS | {"learning_rate": 2e-4},
    "16 answers, critic from the reward model, 1e-4, 1 epoch": _CRITIC | {"learning_rate": 1e-4},
    "16 answers, critic from the reward model, 2e-4, 1 epoch": _CRITIC | {"learning_rate": 2e-4},
}
"""As many as of the peer's, chosen by the same trial: 16 answers an iteration, of 4 prompts or of 16."""
TRL: dict[str, dict[str, Any]] = {
    "3e-5, 2 epochs, KL 0.03 (as ours)": {"learning_rate": 3e-5, "num_ppo_epochs": 2, "kl_coef": 0.03},
    "5e-5, 1 epoch": {"learning_rate": 5e-5, "num_ppo_epochs": 1},
    "1e-4, 1 epoch": {"learning_rate": 1e-4, "num_ppo_epochs": 1},
    "2e-4, 1 epoch": {"learning_rate": 2e-4, "num_ppo_epochs": 1},
}
"""Settings by which it learns. By its default (3e-6, 4 epochs) and at 1e-5 it had not after 20 iterations."""


@dataclass
class Runner:
    """One learning run: minutes of its own clock and the held-out reward, every ``SAVE_EVERY`` iterations."""

    name: str
    contender: Contender
    saves: Path
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        return max(reward for _, reward in self.curve)

    @property
    def last(self) -> float:
        """What settings are chosen by: one that peaked early and fell would be a poor runner."""
        return self.curve[-1][1]

    def minutes_to(self, reward: float) -> float | None:
        """When the curve first crosses ``reward``, between two points in proportion; None where it never does."""
        for (t0, r0), (t1, r1) in zip(self.curve, self.curve[1:], strict=False):
            if r1 >= reward:
                return t1 if r1 == r0 else t0 + (t1 - t0) * max(0.0, (reward - r0) / (r1 - r0))
        return None


class Judge:
    """Scores a saved policy on prompts nobody trained on: greedy answers, normalised scores, less for cut ones."""

    def __init__(self, scorer_folder: Path, tokenizer: Tokenizer, hardware: Hardware) -> None:
        self.scorer: Scorer = load_scorer(scorer_folder, hardware.torch_dtype)
        self.hardware = hardware
        self.prompts = list(itertools.islice(_rendered("gate", tokenizer), HELD_OUT))

    def __call__(self, folder: Path) -> float:
        workers = self.hardware.side_by_side()
        model = load_model(folder, self.hardware.torch_dtype)
        greedy = Sampling(temperature=0, max_tokens=ANSWER_TOKENS)
        answers = SideBySide(model, workers, max_batch=len(self.prompts)).generate_ids(
            self.prompts, [greedy] * len(self.prompts)
        )
        attempts = [Attempt([], answer, None) for answer in answers]
        scores = LearnedScore(self.scorer, workers=workers)(attempts)
        unfinished = sum(not answer.finished for answer in answers)
        return statistics.mean(scores) - UNFINISHED * unfinished / len(answers)


def _rendered(split: Any, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Prompts of the starter curriculum that are short enough, one behaviour after another in turns."""
    names = [name for name, b in curriculum.load().behaviours.items() if not b.held_out]
    pools = [curriculum.items(split, 7, [name], 40) for name in names]
    for number in range(40):
        for pool in pools:
            if number < len(pool):
                ids = tokenizer.render_prompt(pool[number].messages)
                if len(ids) <= LONGEST_PROMPT:
                    yield ids


@dataclass(frozen=True)
class Start:
    """What every run of a race starts from: a policy's weights, and the reward model all learn from."""

    material: Material
    policy: Version
    reward: Version

    def runner(self, name: str, seed: int, program: str, more: dict[str, Any], **who: Any) -> Runner:
        """A run by ``program`` with ``more`` settings.

        Its folder is its own: curves of other machines, settings or programs are not taken for its.
        """
        material = self.material
        scorer = load_scorer(self.reward.folder, material.hardware.torch_dtype)
        common = {
            "model": str(self.policy.folder), "scorer": str(self.reward.folder), "score_mean": scorer.mean,
            "score_std": scorer.std, "prompts": list(_rendered("train", material.tokenizer)), "answers": ANSWERS,
            "answer_tokens": ANSWER_TOKENS, "save_every": SAVE_EVERY, "seed": seed,
        }  # fmt: skip
        slug = "".join(c if c.isalnum() else "-" for c in f"{name}-{seed}")
        peer = "" if program == "ours" else (PEERS / program).read_text("utf-8")
        slug += f"-{digest([processor(), material.common, common, more, peer])[:8]}"
        saves = material.folder / "race" / slug
        saves.mkdir(parents=True, exist_ok=True)
        setting = material.write(f"race-{slug}", common | more | {"saves": str(saves)})
        return Runner(name, Contender(name, program, setting, **who), saves)

    def ours(self, seed: int, setting: str) -> Runner:
        """Our PPO by one of the settings in ``OURS``."""
        return self.runner(f"Nestling, {setting}", seed, "ours", {"kind": "race", "ours": OURS[setting]})

    def trl(self, seed: int, setting: str, python: Path) -> Runner:
        """TRL's PPO by one of the settings in ``TRL``."""
        return self.runner(f"TRL, {setting}", seed, "trl_race.py", {"trl": TRL[setting]}, python=python)


def run(
    players: Sequence[Runner], iterations: int, judge: Judge, start: float, told: Callable[[str], object]
) -> None:
    """Let them learn in turns, an iteration each; their curves are filled in.

    Curves are kept beside the policies when all have finished: the same call again reads them.
    """
    kept = [r.saves / f"curve-{iterations}-of-{len(players)}.json" for r in players]
    if all(path.exists() for path in kept):
        for runner, path in zip(players, kept, strict=True):
            runner.curve = [(minutes, reward) for minutes, reward in json.loads(path.read_text())]
            told(f"{runner.name}: done before, best reward {runner.best:.3f}")
        return
    for runner in players:
        for left in runner.saves.glob("[0-9]*"):
            shutil.rmtree(left)
    with ExitStack() as stack:
        running = [(r, stack.enter_context(Player(r.contender, r.saves / "log"))) for r in players]
        clocks = dict.fromkeys((r.name for r in players), 0.0)
        for runner in players:
            runner.curve.append((0.0, start))
        for iteration in range(1, iterations + 1):
            for runner, player in running:
                clocks[runner.name] += player.turn()["seconds"] / 60
                if iteration % SAVE_EVERY == 0:
                    folder, minutes = runner.saves / str(iteration), clocks[runner.name]
                    runner.curve.append((minutes, judge(folder)))
                    shutil.rmtree(folder)
                    reward = runner.curve[-1][1]
                    told(f"{runner.name}: iteration {iteration}, {minutes:.1f} min, reward {reward:.3f}")
    for runner, path in zip(players, kept, strict=True):
        atomic.write_json(path, runner.curve)


def write_race(
    folder: Path,
    material: Material,
    trials: Sequence[Runner],
    pairs: Sequence[tuple[Runner, Runner]],
    command: str,
) -> Path:
    """``race.md`` and its picture.

    The mark to reach is the best that TRL reached in each pair: what it does not reach, it is not asked for. Where it
    has not learned at all, it counts at its whole budget, against our time to ``NOTICED`` more than the start.
    """
    lines = [
        "# Minutes to the same held-out reward",
        "",
        f"{machine(material.hardware)}. Command: `{command}`.",
        "",
    ]
    lines += [
        "Both learn from the same fine-tuned weights and the same reward model (normalised, full depth), "
        f"{ANSWERS} answers of at most {ANSWER_TOKENS} tokens an iteration. Held-out reward: mean score of greedy "
        f"answers to {HELD_OUT} prompts nobody trains on, less 1 for an answer that does not end. Judging and saving "
        "stop the clock. Sides run by that of the settings tried with seed 0 which ended highest, or by the one that "
        f"the command gives: {pairs[0][0].name}; {pairs[0][1].name}.", "",
        *_tried(trials),
        "| seed | start | TRL's best | TRL, minutes to it | ours, minutes to it | ratio |",
        "|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    ratios = []
    for number, (ours, peer) in enumerate(pairs):
        mark = peer.best
        theirs, mine = peer.minutes_to(mark), ours.minutes_to(mark)
        shown = "ours never reached it"
        learned = mark > peer.curve[0][1]
        if not learned:
            mine, theirs = ours.minutes_to(mark + NOTICED), peer.curve[-1][0]
        if mine and theirs:
            ratios.append(theirs / mine)
            shown = f"{ratios[-1]:.1f}" if learned else f"more than {ratios[-1]:.1f}"
        cell = lambda minutes: f"{minutes:.1f}" if minutes is not None else "never"
        lines.append(
            f"| {number} | {ours.curve[0][1]:.3f} | {mark:.3f} | {cell(theirs)} | {cell(mine)} | {shown} |"
        )
    if ratios:
        lines += ["", f"Median ratio: **{statistics.median(ratios):.1f}**."]
    atomic.write_text(folder / "pictures" / "race.svg", _curves(pairs))
    page = folder / "race.md"
    atomic.write_text(page, "\n".join([*lines, "", "![race](pictures/race.svg)", ""]))
    return page


def _tried(trials: Sequence[Runner]) -> list[str]:
    if not trials:
        return []
    rows = [f"| {t.name} | {t.best:.3f} | {t.last:.3f} | {t.curve[-1][0]:.1f} |" for t in trials]
    return [
        "| settings tried | best reward | reward at the end | minutes |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]


def _curves(pairs: Sequence[tuple[Runner, Runner]]) -> str:
    canvas = Canvas(figsize=(7, 3.2), layout="constrained")
    axes = canvas.subplots()
    for number, pair in enumerate(pairs):
        for runner, colour in zip(pair, ("#3d7ea6", "#b3412f"), strict=True):
            label = runner.name if number == 0 else None
            axes.plot(*zip(*runner.curve, strict=True), "o-", markersize=3, color=colour, label=label)
    axes.set(xlabel="minutes of training", ylabel="held-out reward")
    axes.legend(frameon=False)
    plain(axes)
    return as_svg(canvas, "race")
