"""PPO (Schulman et al. 2017) for language models (Stiennon et al. 2020, Ouyang et al. 2022).

An iteration: answer prompts with the current policy; score the answers; turn scores and KL costs into advantages;
several clipped updates on that experience. Log-probabilities the ratios start from are recomputed by the training
forward, so that before the first update the ratio is exactly 1, and how far the engine's own log-probabilities are
from them is logged.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nestling.compute.workers import Workers
from nestling.data.packing import epoch_order, walk
from nestling.errors import TrainingStopped
from nestling.generation.protocol import Sampling
from nestling.generation.sampler import derive_seed
from nestling.generation.side_by_side import SideBySide
from nestling.model.rows import Row
from nestling.objectives.policy import explained_variance, kl_estimate, ppo_policy_loss, value_loss
from nestling.rewards.terms import Attempt, RewardMix
from nestling.text.messages import Message
from nestling.text.samples import TokenSample
from nestling.training.learner import Learner, Loss
from nestling.training.ppo.config import PPOConfig
from nestling.training.ppo.experience import (
    Scored,
    Trace,
    against_siblings,
    joined,
    rows_of,
    token_rewards,
    with_advantages,
)
from nestling.training.ppo.networks import Networks
from nestling.training.ppo.rehearsal import Rehearsal, Rehearsed
from nestling.training.schedule import rate_scale
from nestling.workspace import atomic

BETAS = (0.9, 0.999)
"""Adam's. Gradients of a few answers are so noisy that second moments of the last twenty updates swing with them: with
0.95 runs learnt less, and some fell again (docs/decisions.md, 2026-11-30)."""


@dataclass(frozen=True)
class Prompt:
    """Something to answer, with the check its answer is held against."""

    messages: Sequence[Message]
    check: Mapping[str, Any] | None = None


Minibatch = list[tuple[Row, list[int]]]
"""Rows of an update, each with the indices of the answers packed into it."""


Batch = tuple[Row, list[Trace]] | Rehearsed
"""What one worker computes at a time: a row of answers with their traces, or one of demonstrations."""

Computed = TypeVar("Computed")


class PPO:
    """The stage: a step is one iteration."""

    name = "ppo"

    def __init__(
        self, networks: Networks, engine: SideBySide, prompts: Sequence[Prompt], reward: RewardMix,
        config: PPOConfig, folder: Path, workers: Workers | None = None, demonstrations: Sequence[TokenSample] = (),
    ) -> None:  # fmt: skip
        self.networks, self.engine, self.prompts, self.reward = networks, engine, prompts, reward
        self.config, self.folder = config, folder
        self.learner = Learner(networks, networks.groups(), config.max_grad_norm, workers, BETAS)
        self.device = networks.policy.device
        self.kl_coef = config.kl_coef
        self.silent_iterations = 0
        self.rehearsal: Rehearsal | None = None
        if config.demonstration_coef > 0:
            self.rehearsal = Rehearsal(
                demonstrations, config.demonstration_tokens, self.learner.workers.count,
                config.demonstration_coef, config.seed, self.device,
            )  # fmt: skip
        self._ahead: dict[int, tuple[Tensor, Tensor, Tensor] | None] = {}

    @property
    def total_steps(self) -> int:
        return self.config.iterations

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef, "silent_iterations": self.silent_iterations}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl_coef, self.silent_iterations = state["kl_coef"], state["silent_iterations"]

    def step(self, step: int) -> dict[str, float]:
        if step == 0:
            self.warm_up_critic()
        start = time.monotonic()
        attempts, generating = self.roll_out(step)
        minibatches = self.partition(attempts, step)
        self.look_ahead(minibatches, step)
        traces, terms = self.score(attempts, minibatches)
        metrics = self.describe(attempts, traces) | terms
        self.watch(metrics)
        metrics |= self.update(traces, minibatches, step)
        self.adapt_kl(metrics["kl"])
        tokens = sum(len(t.rewards) for t in traces)
        seconds = time.monotonic() - start
        metrics |= {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "generating_share": generating / seconds,
        }
        if step % self.config.transcript_every == 0 or step + 1 == self.total_steps:
            self.save_transcripts(step, attempts, traces)
        return metrics

    # Experience -------------------------------------------------------------------------------------------------

    def roll_out(self, step: int) -> tuple[list[Attempt], float]:
        """Answer this iteration's prompts, the answers to one prompt next to each other.

        Returns the attempts and the seconds spent generating.
        """
        samples, rendered = range(self.config.samples), self.asked(step)
        chosen = [prompt for prompt, _ in rendered for _ in samples]
        ids = [prompt_ids for _, prompt_ids in rendered for _ in samples]
        sampling = [
            Sampling(
                temperature=self.config.temperature,
                max_tokens=self.config.max_new_tokens,
                seed=derive_seed(self.config.seed, step, index),
            )
            for index in range(len(chosen))
        ]
        start = time.monotonic()
        completions = self.engine.generate_ids(ids, sampling)
        seconds = time.monotonic() - start
        self.engine.rest()  # the first update changes the weights anyway
        attempts = [Attempt(p.messages, c, p.check) for p, c in zip(chosen, completions, strict=True)]
        return attempts, seconds

    def asked(self, step: int) -> list[tuple[Prompt, list[int]]]:
        """This iteration's prompts, with their token ids."""
        first, count = step * self.config.prompts, self.config.prompts
        chosen = walk(len(self.prompts), self.config.seed, first, first + count)
        prompts = [self.prompts[at] for at in chosen]
        return [(prompt, self.engine.tokenizer.render_prompt(prompt.messages)) for prompt in prompts]

    def partition(self, attempts: Sequence[Attempt], step: int) -> list[Minibatch]:
        """Deal the prompts into minibatches, each with all its answers, and pack each minibatch into rows.

        Scoring and updates use the very same rows: the forward that gives the old log-probabilities is then, bit for
        bit, the one that the first update repeats. They have gone through the frozen blocks already.
        """
        k = self.config.samples
        groups = [[a.completion for a in attempts[at : at + k]] for at in range(0, len(attempts), k)]
        order = epoch_order(len(groups), derive_seed(self.config.seed, step), 0)
        count = self.learner.workers.count
        minibatches = [
            [
                (row, [part[i] * k + sample for i in chosen for sample in range(k)])
                for chosen, row in rows_of(
                    [groups[i] for i in part], self.config.row_tokens, count, self.device
                )
            ]
            for part in split_evenly(order, self.config.minibatches)
        ]
        begun = ((row, indices) for _, indices, row in self.computed(minibatches, Networks.begin))
        return [[next(begun) for _ in minibatch] for minibatch in minibatches]

    @torch.no_grad()
    def score(
        self, attempts: Sequence[Attempt], minibatches: Sequence[Minibatch]
    ) -> tuple[list[Trace], dict[str, float]]:
        """Score the attempts and work out what each token was worth."""
        scores, terms = self.reward(attempts)
        merits = against_siblings(scores, self.config.samples)
        scored: dict[int, Scored] = {}
        for row, indices, tensors in self.computed(minibatches, self.scored_tokens):
            parts = [t.split(row.counts) for t in tensors]
            for index, own, reference, value in zip(indices, *parts, strict=True):
                completion = attempts[index].completion
                rollout = torch.tensor(completion.logprobs, device=self.device)
                rewards = token_rewards(merits[index], own, reference, self.kl_coef)
                scored[index] = Scored(completion, scores[index], own, rollout, reference, value, rewards)
        traces = with_advantages(
            [scored[index] for index in range(len(attempts))], self.config.gamma, self.config.gae_lambda
        )
        means = {f"reward/{name}": sum(values) / len(values) for name, values in terms.items()}
        return traces, means | {"reward/total": sum(scores) / len(scores)}

    def look_ahead(self, minibatches: Sequence[Minibatch], step: int) -> None:
        """Note the rows of the first update, whose forward pass is the one that scores them: same weights, same rows.

        Only where each worker has one row of it, as then no more activations are held than in an update.
        """
        first = minibatches[self.update_order(minibatches, step, 0)[0]]
        self._ahead = {id(row): None for row, _ in first} if len(first) <= self.learner.workers.count else {}

    def scored_tokens(self, networks: Networks, row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, the reference's, and values of a row's targets, fp32 [N] each."""
        ahead = id(row) in self._ahead
        with torch.set_grad_enabled(ahead):
            logprobs, entropy, values = networks(row)
        if ahead:
            self._ahead[id(row)] = logprobs, entropy, values
        return logprobs.detach(), networks.reference_logprobs(row), values.detach()

    def computed(
        self, minibatches: Sequence[Minibatch], compute: Callable[[Networks, Row], Computed]
    ) -> Iterator[tuple[Row, list[int], Computed]]:
        """``compute`` on every row, by the worker and in the way that will update on it."""
        networks, learner = self.learner.networks, self.learner
        for minibatch in minibatches:
            found = learner.workers.map(lambda worker, pair: compute(networks[worker], pair[0]), minibatch)
            for (row, indices), value in zip(minibatch, found, strict=True):
                yield row, indices, value

    @torch.no_grad()
    def warm_up_critic(self) -> None:
        """Fit the value head to the returns of the unmoved policy before it is believed.

        One that gives the reward model's scores knows more than a few batches could tell it.
        """
        if self.networks.value_is_score:
            return
        features, returns = [], []
        read = lambda networks, row: networks.value_features(row, networks.hidden(row))
        for batch in range(self.config.critic_warmup):
            attempts, _ = self.roll_out(-1 - batch)
            merits = against_siblings(self.reward(attempts)[0], self.config.samples)
            for row, indices, read_by_head in self.computed(self.partition(attempts, -1 - batch), read):
                features.append(read_by_head.float())
                # Nothing has moved yet: the KL is zero, and all that follows a token is the answer's score.
                for index, count in zip(indices, row.counts, strict=True):
                    steps_left = torch.arange(count - 1, -1, -1, device=self.device)
                    returns.append(merits[index] * self.config.gamma**steps_left)
        if features:
            self.networks.value_head.fit(torch.cat(features), torch.cat(returns))

    # Updates ----------------------------------------------------------------------------------------------------

    def update(
        self, traces: Sequence[Trace], minibatches: Sequence[Minibatch], step: int
    ) -> dict[str, float]:
        """Several passes of clipped updates; stops before the one that finds the policy moved far enough."""
        scale = rate_scale(step, self.total_steps, self.config.warmup_steps, self.config.schedule)
        history: list[dict[str, float]] = []
        done = step * self.config.epochs * self.config.minibatches
        for epoch in range(self.config.epochs):
            for number in self.update_order(minibatches, step, epoch):
                batches: list[Batch] = [
                    (row, [traces[i] for i in indices]) for row, indices in minibatches[number]
                ]
                count = sum(len(row.targets) for row, _ in minibatches[number])
                if self.rehearsal is not None:
                    batches += self.rehearsal.of_update(done + len(history), count)
                means = self.learner.gradients(batches, count, self.loss)
                if means["update_kl"] > self.config.stop_kl:
                    self.learner.optimizer.zero_grad()
                    return self.summary(history, means["update_kl"], stopped=True)
                history.append(means | self.learner.apply(scale))
        return self.summary(history, history[-1]["update_kl"], stopped=False)

    def update_order(self, minibatches: Sequence[Minibatch], step: int, epoch: int) -> list[int]:
        """The minibatches in the order of an epoch's updates."""
        return epoch_order(len(minibatches), derive_seed(self.config.seed, step), epoch)

    def loss(self, networks: Networks, batch: Batch) -> Loss:
        """Clipped policy loss plus weighted value loss, summed over the row's tokens; of demonstrations, theirs."""
        if isinstance(batch, Rehearsed):
            return batch.loss(networks.policy)
        row, traces = batch
        old, returns = joined(traces, "logprobs"), joined(traces, "returns")
        logprobs, entropy, values = self._ahead.pop(id(row), None) or networks(row)
        policy, clipped = ppo_policy_loss(
            logprobs, old, joined(traces, "advantages"), self.config.clip, self.config.dual_clip
        )
        if self.config.importance_cap is not None:
            mismatch = (old - joined(traces, "rollout_logprobs")).exp()
            policy = policy * mismatch.clamp_max(self.config.importance_cap)
        value, value_clipped = value_loss(values, joined(traces, "values"), returns, self.config.value_clip)
        # A zero coefficient still trains the head: its input is detached then.
        total = (policy + (self.config.value_coef or 1.0) * value).sum()
        ratio = (logprobs - old).detach()
        n = len(old)
        metrics = {
            "policy_loss": policy.sum().item(),
            "value_loss": value.sum().item(),
            "entropy": entropy.sum().item(),
            "clip_fraction": clipped.sum().item(),
            "value_clip_fraction": value_clipped.sum().item(),
            # Of the rollout policy against the one being updated; k3 is never negative.
            "update_kl": kl_estimate(old, logprobs.detach(), "k3").sum().item(),
            "ratio": ratio.exp().sum().item(),
        }
        return Loss(total, n, {name: (value, n) for name, value in metrics.items()})

    @staticmethod
    def summary(history: Sequence[dict[str, float]], last_kl: float, stopped: bool) -> dict[str, float]:
        """Means over an iteration's updates; ``last_kl`` was seen by the last forward pass, after all but its own."""
        mean = {name: sum(h[name] for h in history) / len(history) for name in history[0]}
        return mean | {
            "first_update_kl": history[0]["update_kl"],
            "first_ratio": history[0]["ratio"],
            "last_update_kl": last_kl,
            "updates": float(len(history)),
            "stopped_by_kl": float(stopped),
        }

    def adapt_kl(self, kl: float) -> None:
        """Proportional controller of kl_coef (Ziegler et al. 2019), when a target is set."""
        if self.config.kl_target is not None:
            error = max(-0.2, min(0.2, kl / self.config.kl_target - 1))
            self.kl_coef *= 1 + 0.1 * error

    # Watching ---------------------------------------------------------------------------------------------------

    def describe(self, attempts: Sequence[Attempt], traces: Sequence[Trace]) -> dict[str, float]:
        """How the rollouts looked before the updates."""
        n = len(traces)
        lengths = [len(t.rewards) for t in traces]
        drift: Tensor = joined(traces, "logprobs") - joined(traces, "reference_logprobs")
        mismatch = (joined(traces, "logprobs") - joined(traces, "rollout_logprobs")).abs()
        return {
            "kl": drift.sum().item() / n,
            "kl_per_token": drift.mean().item(),
            "kl_coef": self.kl_coef,
            "explained_variance": explained_variance(
                joined(traces, "values"), joined(traces, "returns")
            ).item(),
            "mean_length": sum(lengths) / n,
            "eos_rate": sum(a.completion.finished for a in attempts) / n,
            "rollout_mismatch": mismatch.mean().item(),
            "rollout_mismatch_max": mismatch.max().item(),
        }

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Stop a run that has collapsed, in a plain sentence, before it is trained any further."""
        silent = self.silent_iterations + 1 if metrics["eos_rate"] < 0.05 else 0
        if silent >= 5:
            raise TrainingStopped(
                "PPO has collapsed: fewer than 1 answer in 20 ended by itself for five iterations.",
                remedy="Lower ppo.learning_rate, raise ppo.kl_coef or ppo.unfinished_penalty.",
            )
        if metrics["kl"] > self.config.max_kl:
            raise TrainingStopped(
                f"PPO has collapsed: the KL to the reference is {metrics['kl']:.1f} nats an answer, "
                f"above max_kl = {self.config.max_kl}.",
                remedy="Lower ppo.learning_rate or raise ppo.kl_coef.",
            )
        self.silent_iterations = silent

    def save_transcripts(self, step: int, attempts: Sequence[Attempt], traces: Sequence[Trace]) -> None:
        """The first answers of an iteration, to be read by people."""
        samples = [
            {
                "messages": list(a.messages),
                "answer": a.completion.text,
                "finished": a.completion.finished,
                "reward": round(t.score, 3),
                "advantage": round(t.advantages.mean().item(), 3),
            }
            for a, t in list(zip(attempts, traces, strict=True))[:8]
        ]
        atomic.write_json(self.folder / "transcripts" / f"{step:04d}.json", samples)


def split_evenly(items: Sequence[int], parts: int) -> list[list[int]]:
    """At most ``parts`` runs of consecutive items whose sizes differ by at most one; none is empty."""
    parts = min(parts, len(items))
    bounds = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(bounds)]
