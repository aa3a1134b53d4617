"""What an iteration learns from: answers, their log-probabilities, values, rewards and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nestling.data.packing import deal_rows
from nestling.generation.protocol import Completion
from nestling.model.rows import Row, pack_answers
from nestling.objectives.advantages import gae, leave_one_out, whiten
from nestling.objectives.policy import kl_estimate


@dataclass(frozen=True)
class Scored:
    """One answer token by token; every tensor is fp32 [n] for its n tokens.

    ``score`` is what the whole answer earned, before it is measured against its siblings. ``logprobs`` are the
    training forward's before the first update, ``rollout_logprobs`` the engine's.
    """

    completion: Completion
    score: float
    logprobs: Tensor
    rollout_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class Trace(Scored):
    """What the updates learn from; fp32 [n] too."""

    advantages: Tensor
    returns: Tensor


def rows_of(
    groups: Sequence[Sequence[Completion]], row_tokens: int, count: int, device: torch.device
) -> Iterator[tuple[list[int], Row]]:
    """Pack groups of answers to one prompt each into rows; yields (indices of the groups, row).

    A prompt lies and is computed once for all its answers. Rows are dealt for ``count`` workers (``deal_rows``).
    """
    parts = [(group[0].prompt_ids, [c.token_ids for c in group]) for group in groups]
    lengths = [len(prompt) + sum(map(len, answers)) for prompt, answers in parts]
    for indices in deal_rows(lengths, row_tokens, count):
        yield indices, pack_answers([parts[i] for i in indices], device)


def against_siblings(scores: Sequence[float], samples: int) -> list[float]:
    """Each score minus the mean of the other answers to its prompt (leave-one-out, Ahmadian et al. 2024).

    ``scores`` has the ``samples`` answers of a prompt next to each other. How hard a prompt is says nothing of an
    answer to it; taking it out leaves the critic to tell the tokens of one answer apart. Unchanged for one sample.
    """
    if samples == 1:
        return list(scores)
    return leave_one_out(torch.tensor(scores, dtype=torch.float64).view(-1, samples)).flatten().tolist()


def token_rewards(score: float, logprobs: Tensor, reference_logprobs: Tensor, kl_coef: float) -> Tensor:
    """Reward per token: minus the KL cost (k1) everywhere, plus the answer's score on its last token. All [n]."""
    rewards = -kl_coef * kl_estimate(logprobs, reference_logprobs)
    rewards[-1] += score
    return rewards


def with_advantages(scored: Sequence[Scored], gamma: float, lam: float) -> list[Trace]:
    """Add advantages (whitened over the whole batch, after the returns) and returns.

    A cut answer ends like a finished one: its penalty is already in the reward, and nothing follows it.
    """
    rewards = pad_sequence([s.rewards for s in scored], batch_first=True)
    values = pad_sequence([s.values for s in scored], batch_first=True)
    mask = pad_sequence([torch.ones_like(s.rewards, dtype=torch.bool) for s in scored], batch_first=True)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    advantages = whiten(advantages, mask)
    return [
        Trace(**vars(s), advantages=advantages[i][mask[i]], returns=returns[i][mask[i]])
        for i, s in enumerate(scored)
    ]


def joined(traces: Sequence[Trace], name: str) -> Tensor:
    """A field of several traces end to end, in the order of a row's targets."""
    return torch.cat([getattr(t, name) for t in traces])
