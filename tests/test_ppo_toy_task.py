"""PPO learns: shortest paths through a small graph, taught by random walks."""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from nestling.generation.engine import Engine
from nestling.generation.protocol import Request, Sampling
from nestling.rewards.terms import Attempt, RewardMix
from nestling.text.samples import training_samples
from nestling.training.ppo import PPOConfig, Prompt, train_ppo
from nestling.training.sft import SFTConfig, train_sft
from nestling.workspace.events import EventLog
from test_text_support import assistant, user
from tiny import tiny_model

NODES = "ABCDEFGHIJ"


class ShortestPaths:
    """Reward of a path from A to B through a random graph: shortest length over its own; 0 when it is no path."""

    name = "path"

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.edges = {
            n: sorted({*draw.sample(NODES, 3), NODES[(i + 1) % 10]} - {n}) for i, n in enumerate(NODES)
        }
        self.pairs = [(a, b) for a in NODES for b in NODES if a != b and b not in self.edges[a]]

    def distance(self, start: str, goal: str) -> int:
        seen, queue = {start: 0}, deque([start])
        while queue:
            node = queue.popleft()
            for after in self.edges[node]:
                if after not in seen:
                    seen[after] = seen[node] + 1
                    queue.append(after)
        return seen[goal]

    def wander(self, start: str, goal: str, draw: random.Random) -> str:
        """A random walk that ends at the goal, or gives up after eight steps and is tried again."""
        while True:
            path = start
            while len(path) < 9:
                path += draw.choice(self.edges[path[-1]])
                if path[-1] == goal:
                    return path

    def value(self, prompt: str, answer: str) -> float:
        start, goal = prompt.split()
        legal = all(b in self.edges.get(a, ()) for a, b in itertools.pairwise(answer))
        if len(answer) < 2 or answer[0] != start or answer[-1] != goal or not legal:
            return 0.0
        return self.distance(start, goal) / (len(answer) - 1)

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [
            self.value(a.messages[0]["content"], a.completion.text) if a.completion.finished else 0.0
            for a in attempts
        ]


@pytest.mark.slow
def test_ppo_finds_shortest_paths(tmp_path: Path) -> None:
    """Taught by random walks, PPO reaches 90 % of the optimum; the walks themselves are far from it."""
    graph, draw = ShortestPaths(1), random.Random(2)
    model = tiny_model(
        seed=1, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128
    )
    walks = [
        [user(f"{a} {b}"), assistant(graph.wander(a, b, draw))] for a, b in graph.pairs for _ in range(30)
    ]
    samples = [s for walk in walks for s in training_samples(model.tokenizer, walk, "walk")]
    sft = SFTConfig(
        learning_rate=5e-3, epochs=4, max_tokens=10**7, row_tokens=320, batch_tokens=320, validate_every=200
    )
    train_sft(model, samples[60:], samples[:60], sft, tmp_path / "sft", EventLog(tmp_path / "e"))

    def greedy() -> float:
        requests = [
            Request([user(f"{a} {b}")], Sampling(temperature=0, max_tokens=12)) for a, b in graph.pairs
        ]
        done = Engine(model, max_batch=64).generate(requests)
        return sum(graph([Attempt(r.messages, c, None) for r, c in zip(requests, done, strict=True)])) / len(
            done
        )

    before, began = greedy(), time.process_time()
    config = PPOConfig(
        iterations=80, prompts=224, samples=1, max_new_tokens=12, epochs=4, minibatches=2, learning_rate=6e-4,
        schedule="linear", kl_coef=0.0, row_tokens=2048, stop_kl=0.1, max_kl=1e9, transcript_every=1000,
        critic_learning_rate=3e-3, value_coef=0.5,
    )  # fmt: skip
    prompts = [Prompt([user(f"{a} {b}")]) for a, b in graph.pairs]
    train_ppo(
        model,
        prompts,
        None,
        config,
        tmp_path / "ppo",
        EventLog(tmp_path / "p"),
        reward=RewardMix([(graph, 1.0)]),
    )
    after = greedy()
    assert before < 0.7 and after > 0.9, (before, after)
    assert time.process_time() - began < 120  # of one core, so that a busy neighbour does not count
