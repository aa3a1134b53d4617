"""What an iteration learns from: answers, their log-probabilities, values, rewards and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.data.packing import pack
from nestling.generation.protocol import Completion
from nestling.model.rows import Row, pack_row
from nestling.objectives.advantages import gae, whiten
from nestling.text.samples import TokenSample


@dataclass(frozen=True)
class Trace:
    """One answer token by token; every tensor is fp32 [n] for its n tokens.

    ``logprobs`` are the training forward's before the first update, ``rollout_logprobs`` the engine's.
    """

    completion: Completion
    logprobs: Tensor
    rollout_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


def as_sample(completion: Completion) -> TokenSample:
    """Prompt and answer as one sequence, the answer (its end token included) being what is asked about."""
    prompt, answer = list(completion.prompt_ids), list(completion.token_ids)
    return TokenSample(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def rows_of(
    samples: Sequence[TokenSample], row_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], Row]]:
    """Pack samples into rows; yields (indices of the samples, row)."""
    longest = max(len(s.ids) for s in samples)
    for indices in pack([len(s.ids) for s in samples], max(row_tokens, longest)):
        yield indices, pack_row([samples[i] for i in indices], device)


def token_rewards(score: float, logprobs: Tensor, reference_logprobs: Tensor, kl_coef: float) -> Tensor:
    """Reward per token: minus the KL cost (k1) everywhere, plus the answer's score on its last token. All [n]."""
    rewards = -kl_coef * (logprobs - reference_logprobs)
    rewards[-1] += score
    return rewards


def with_advantages(traces: Sequence[Trace], gamma: float, lam: float) -> list[Trace]:
    """Fill in advantages (whitened over the whole batch, after the returns) and returns.

    A cut answer ends like a finished one: its penalty is already in the reward, and nothing follows it.
    """
    pad = lambda name: torch.nn.utils.rnn.pad_sequence([getattr(t, name) for t in traces], batch_first=True)
    lengths = torch.tensor([len(t.rewards) for t in traces], device=traces[0].rewards.device)
    mask = torch.arange(int(lengths.max()), device=lengths.device)[None, :] < lengths[:, None]
    advantages, returns = gae(pad("rewards"), pad("values"), mask, gamma, lam)
    advantages = whiten(advantages, mask)
    return [
        replace(t, advantages=advantages[i, : len(t.rewards)], returns=returns[i, : len(t.rewards)])
        for i, t in enumerate(traces)
    ]


def joined(traces: Sequence[Trace], name: str) -> Tensor:
    """A field of several traces end to end, in the order of a row's targets."""
    return torch.cat([getattr(t, name) for t in traces])
