"""The stages of a raising, each one function: it reads versions and files, and publishes a version or a file.

Every function can be killed at any moment and called again with the same arguments and folder: it goes on and ends
with the same result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nestling.compute.device import Hardware, detect
from nestling.compute.workers import Workers
from nestling.data.curriculum import Item
from nestling.data.formats import Ranking, read_rows
from nestling.errors import ConfigError, DataError, ModelError, WorkspaceError
from nestling.evaluation.answers import folder_identity
from nestling.evaluation.evaluate import evaluate
from nestling.evaluation.perplexity import load_passages
from nestling.evaluation.results import Results
from nestling.evaluation.suite import EvaluationSplit, build_suite, own_suite
from nestling.generation.best_of import BestOf
from nestling.generation.protocol import Generator, Sampling, nothing
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import LoadedModel, load_model, save_model
from nestling.model.scorer import Scorer, load_scorer, save_scorer
from nestling.rewards.predictor import Predictor, judge_by
from nestling.rewards.terms import PeopleScore
from nestling.training.ppo import PPOConfig, train_ppo
from nestling.training.reward_model import RewardModelConfig, train_reward_model
from nestling.training.sft import SFTConfig, train_sft
from nestling.workflow import materials
from nestling.workflow.fetch import fetch_base, local_base
from nestling.workflow.package_index import Report
from nestling.workflow.progress import ReportedLog
from nestling.workflow.recipe import DataConfig, EvaluationConfig, RankConfig
from nestling.workflow.reward_report import reward_report, set_normalisation
from nestling.workspace import Card, Tick, Version, Workspace, atomic


@dataclass(frozen=True)
class Bench:
    """Where a stage works: the workspace, what to compute with, its own folder, the run's diary.

    ``allowed`` is asked before anything is published, and raises where it may not be any more.
    """

    workspace: Workspace
    hardware: Hardware
    folder: Path
    events: ReportedLog
    run: str
    checkpoint_seconds: float = 60.0
    allowed: Callable[[], object] = nothing

    @classmethod
    def open(cls, workspace: Workspace, run: str, choose: Callable[[], Hardware] = detect) -> Bench:
        """The bench of a run by its name; the same name goes on where it stopped.

        ``choose`` is asked once: what was chosen by measurement is kept in the run's folder, so that a resumed run
        computes with it too.
        """
        folder = workspace.run_folder(run)
        hardware = kept_hardware(folder / "hardware.json", choose)
        return cls(workspace, hardware, folder, ReportedLog(folder / "events.jsonl"), run)

    def at(self, name: str) -> Bench:
        """The same bench with a subfolder as its folder."""
        return replace(self, folder=self.folder / name)

    def ticker(self, stage: str) -> Tick:
        """Progress of a stage that has no training loop, as events."""
        return lambda done, total: void(self.events.append("progress", stage=stage, step=done, total=total))

    @property
    def workers(self) -> Workers:
        return self.hardware.side_by_side()

    def engine(self, model: LoadedModel) -> SideBySide:
        return SideBySide(model, self.workers, max_batch=CHUNK_BATCH)

    def answering(self, version: Version, model: LoadedModel) -> Generator:
        """What answers as the version does when it is served: with best-of-n where its card says so."""
        return choosing(self.engine(model), version, model, self.workers)

    def load(self, version: Version) -> LoadedModel:
        return load_model(version.folder, self.hardware.torch_dtype, self.hardware.device)

    def published(self, stage: str) -> Version | None:
        """The version this run's stage has already published."""
        made = [
            v
            for v in self.workspace.versions.list()
            if made_by(v) == (self.run, stage) and not v.card.removed
        ]
        if made:
            self._tidy()  # a kill may have come between publishing and this
        return made[-1] if made else None

    def publish(self, stage: str, build: Callable[[Path], object], card: Card) -> Version:
        """Publish a version that knows which run and stage made it; its working files are not needed any more."""
        self.allowed()
        marked = Card.model_validate(card.model_dump() | {"run": self.run, "stage": stage})
        version = self.workspace.versions.publish(build, marked)
        self._tidy()
        self.events.append("published", stage=stage, version=version.name)
        return version

    @contextmanager
    def nothing_left_of_a_refusal(self) -> Iterator[None]:
        """Where the block is refused before it made anything, the run's folder goes too."""
        try:
            yield
        except (ConfigError, DataError):
            if {path.name for path in self.folder.iterdir()} <= {"hardware.json", "events.jsonl"}:
                shutil.rmtree(self.folder)
            raise

    def _tidy(self) -> None:
        """Drop what only an unfinished stage needs: checkpoints are six times as large as a version."""
        for left in [*self.folder.glob("checkpoint-*"), *self.folder.glob("best-*")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def kept_hardware(path: Path, choose: Callable[[], Hardware]) -> Hardware:
    """The hardware written down at ``path``, chosen and written down if nothing is; applied to this process."""
    if path.exists():
        try:
            return Hardware(**json.loads(path.read_text())).apply()
        except (ValueError, TypeError) as error:
            remedy = "Move the run's folder away to begin it anew."
            raise WorkspaceError(f"this cannot be read: {error}.", where=str(path), remedy=remedy) from error
    hardware = choose()
    atomic.write_json(path, asdict(hardware))
    return hardware.apply()


def void(_: object) -> None:
    """Drop a value."""


def best_of(version: Version) -> int:
    """How many answers the version gives to choose from."""
    return int((version.card.model_extra or {}).get("best_of", 1))


def choosing(
    engine: Generator, version: Version, model: LoadedModel, workers: Workers | None = None
) -> Generator:
    """``engine``, or the best of several of its answers where people's scores taught the version to choose."""
    if (predictor := Predictor.load(version.folder)) is None:
        return engine
    return BestOf(engine, judge_by(predictor, model.decoder, workers), best_of(version))


def made_by(version: Version) -> tuple[Any, Any]:
    extra = version.card.model_extra or {}
    return extra.get("run"), extra.get("stage")


def import_base(bench: Bench, base: str, assistant: str, report: Report | None = None) -> Version:
    """Fetch the base model, give it its name and a padding token of its own, and publish it as a version.

    The same base under the same name is published once in a workspace, and served if nothing is yet.
    """
    local = local_base(base)
    stage = f"base:{folder_identity(local) if local else base}:{assistant}"
    versions = bench.workspace.versions
    known = [v for v in versions.list() if made_by(v)[1] == stage and not v.card.removed]
    if known:
        version = known[0]
    else:
        found = fetch_base(base, bench.workspace.cache, report)
        model = found.load(assistant, bench.hardware.torch_dtype)
        if not all(weight.isfinite().all() for weight in model.decoder.parameters()):
            remedy = "Get the model again, or take another."
            raise ModelError("some weights are not numbers.", where=str(found.path), remedy=remedy)
        data = {Path(found.path).name: found.sha256} if found.sha256 else {}
        card = Card(
            kind="base", assistant=assistant, licence=found.licence or "unknown", state="accepted",
            verdict=f"The base model, as published: {found.source}.", data=data,
        )  # fmt: skip
        version = bench.publish(stage, lambda folder: save_model(folder, model), card)
    if versions.pointer() is None:
        versions.promote(version.name, "the base model: something to talk to from the first minute")
    return version


def sft(bench: Bench, parent: Version, data: DataConfig, config: SFTConfig, seed: int = 0) -> Version:
    """Fine-tune ``parent`` on demonstrations, replay and files; ``seed`` chooses the demonstrations."""
    done = bench.published("sft")
    if done:
        return done
    model = bench.load(parent)
    replayed = []
    if data.replay:
        engine, folder = bench.engine(model), bench.folder / "replay"
        replayed = materials.replay(
            engine, data.replay, data.replay_max_tokens, folder, bench.ticker("replay")
        )
        del engine  # and its packed copy of the weights
    material = materials.sft_material(data, seed, parent.card.assistant, model.tokenizer, replayed)
    for told in material.fates(min(config.row_tokens, model.config.context_length)):
        bench.events.append("report", stage="sft", text=told)
    report = train_sft(
        model, material.train, material.validation, config, bench.folder, bench.events,
        checkpoint_seconds=bench.checkpoint_seconds, workers=bench.workers,
    )  # fmt: skip
    bench.events.append("report", stage="sft", text=report.remark, **asdict(report))
    card = child_card("sft", parent, material.hashes, {"sft": asdict(report)})
    return bench.publish("sft", lambda folder: save_model(folder, model), card)


CHUNK_BATCH = 192
"""Sequences generated at the same time by the stages: a behaviour's prompts in one go, within about 1 GiB of cache."""


def rank(bench: Bench, policy: Version, items: Sequence[Item], config: RankConfig) -> list[dict[str, Any]]:
    """Rankings of answers sampled from ``policy`` and written ones; kept as ``rankings.jsonl``."""
    model = bench.load(policy)
    items = fitting(bench, "rank", model, items, config.max_new_tokens)
    rows = materials.rank_answers(bench.engine(model), items, config, bench.folder, bench.ticker("rank"))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic.write_text(bench.folder / "rankings.jsonl", text)
    decided = sum(len(set(row["ranks"])) > 1 for row in rows)
    told = f"{len(rows)} rankings, {decided} tell answers apart."
    if len(rows) < len(items):
        told += f" Left out: {len(items) - len(rows)} prompts that were answered in too few different ways."
    bench.events.append("report", stage="rank", text=told)
    return rows


def fitting(
    bench: Bench, stage: str, model: LoadedModel, items: Sequence[Item], new_tokens: int
) -> list[Item]:
    """Items whose prompt leaves room for an answer in the model's context; the others are counted in the diary.

    Raises:
        DataError: there is none.
    """
    room = model.config.context_length - new_tokens
    kept = [item for item in items if len(model.tokenizer.render_prompt(item.messages)) <= room]
    if len(kept) < len(items):
        bench.events.append("samples_left_out", stage=stage, count=len(items) - len(kept))
    if not kept:
        raise DataError(
            f"none of the {len(items)} prompts leaves room for {new_tokens} new tokens.",
            where=stage,
            remedy=f"Shorten them to {room} tokens, or lower max_new_tokens.",
        )
    return kept


def reward_model(
    bench: Bench,
    parent: Version,
    rows: Sequence[dict[str, Any]],
    config: RewardModelConfig,
    validation_share: float,
) -> Version:
    """Train a reward model from ``parent`` on rankings; its figures go into its card."""
    done = bench.published("reward_model")
    if done:
        return done
    model = bench.load(parent)
    scorer = Scorer(model.decoder, model.tokenizer).to(bench.hardware.device)
    train, held = materials.ranking_split(rows, validation_share)
    as_ids = lambda some: [materials.ranked_ids(model.tokenizer, row) for row in some]
    report = train_reward_model(
        scorer, as_ids(train), as_ids(held), config, bench.folder, bench.events,
        checkpoint_seconds=bench.checkpoint_seconds, workers=bench.workers,
    )  # fmt: skip
    set_normalisation(scorer, held)
    measured = reward_report(scorer, held)
    bench.events.append("report", stage="reward_model", text=describe_reward_model(measured), **measured)
    card = child_card("reward_model", parent, {"rankings": materials.digest(list(rows))},
                      {"reward_model": asdict(report) | measured})  # fmt: skip
    return bench.publish("reward_model", lambda folder: save_scorer(folder, scorer), card)


def describe_reward_model(measured: dict[str, Any]) -> str:
    part = lambda name: "none" if measured[name]["accuracy"] is None else f"{measured[name]['accuracy']:.1%}"
    people = f", of people's {part('people')}" if measured["people"]["pairs"] else ""
    return (
        f"Pair accuracy on {measured['rankings']} held-out rankings: {part('all')}; sampled answers against each other "
        f"{part('on_policy')}, with written ones {part('with_written')}{people}. "
        f"Correlation of score with length {measured['correlation_with_length']:+.2f}."
    )


def ppo(
    bench: Bench, parent: Version, scorer: Version | None, items: Sequence[Item], config: PPOConfig,
    data: DataConfig | None = None, seed: int = 0, stage: str = "ppo", told: Mapping[str, Any] | None = None,
    people: PeopleScore | None = None,
) -> Version:  # fmt: skip
    """Align ``parent`` by PPO against the reward model and the rules, with demonstrations of ``data`` mixed in where
    the settings say so (``materials.rehearsal``; ``seed`` chooses them as in fine-tuning). ``told`` goes onto the card,
    ``people`` is a further term of the reward.
    """
    done = bench.published(stage)
    if done:
        return done
    model = bench.load(parent)
    dtype, device = bench.hardware.torch_dtype, bench.hardware.device
    judge = None
    if scorer is not None and config.learned_weight > 0:
        require_same_tokens(parent, scorer)
        judge = load_scorer(scorer.folder, dtype, device).requires_grad_(False)
    items = fitting(bench, stage, model, items, config.max_new_tokens)
    prompts = materials.ppo_prompts(items)
    asked = [[i.id, list(i.messages), i.check] for i in items]
    hashes, demonstrations = {"prompts": materials.digest(asked)}, []
    if data is not None and config.demonstration_coef > 0:
        material = materials.rehearsal(data, seed, parent.card.assistant, model.tokenizer)
        hashes, demonstrations = hashes | material.hashes, material.train
    train_ppo(
        model, prompts, judge, config, bench.folder, bench.events,
        checkpoint_seconds=bench.checkpoint_seconds, workers=bench.workers, demonstrations=demonstrations,
        people=people,
    )  # fmt: skip
    card = child_card("ppo", parent, hashes, {})
    if scorer is not None and judge is not None:
        card.parents.append(scorer.name)
    card = card.model_validate(card.model_dump() | dict(told or {}))
    return bench.publish(stage, lambda folder: save_model(folder, model), card)


def require_same_tokens(policy: Version, scorer: Version) -> None:
    """A reward model reads the policy's token ids: to another vocabulary they are another text.

    Raises:
        ConfigError: their tokenizers differ.
    """
    ours, theirs = ((version.folder / "tokenizer.json").read_bytes() for version in (policy, scorer))
    if ours != theirs:
        raise ConfigError(
            f"{scorer.name} reads other tokens than {policy.name} writes.",
            where="--reward-model",
            remedy="Take a reward model that was trained from a version of the same base.",
        )


def child_card(kind: str, parent: Version, data: dict[str, str], metrics: dict[str, Any]) -> Card:
    return Card(
        kind=kind, assistant=parent.card.assistant, parents=[parent.name], data=data, metrics=metrics,
        licence=parent.card.licence,
    )  # fmt: skip


@torch.no_grad()
def measure(
    bench: Bench,
    version: Version,
    split: EvaluationSplit,
    config: EvaluationConfig,
    base: Results | None,
    stage: str,
    progress: Tick | None = None,
    questions: Path | None = None,
) -> Results:
    """Evaluate a version on a split, or on a file of ``questions`` instead.

    Answers are cached in the workspace by everything that decides them.
    """
    assistant = version.card.assistant
    if questions is not None:
        suite = own_suite(questions, assistant)
    else:
        suite = build_suite(split, config.seed, sizes=config.sizes, assistant=assistant)
    model = bench.load(version)
    identity = f"{folder_identity(version.folder)}/{bench.hardware.arithmetic}"
    if best_of(version) > 1:
        identity += f"/best of {best_of(version)}"
    return evaluate(
        bench.answering(version, model),
        suite,
        name=version.name,
        identity=identity,
        cache=bench.workspace.cache / "answers",
        base=base,
        model=model,
        prose=load_passages(split) if questions is None else [],
        sampling=Sampling(temperature=0, max_tokens=config.max_new_tokens),
        progress=progress or bench.ticker(stage),
    )


def stored_rankings(path: Path) -> list[dict[str, Any]]:
    """Rankings written by ``rank``, or a user's own in the same format.

    Raises:
        WorkspaceError: there are none.
        DataError: a row is wrong, with its line.
    """
    if not path.exists():
        raise WorkspaceError("there are no rankings.", where=str(path), remedy="Run `nestling rank` first.")
    rows = []
    for row in read_rows(path, Ranking):
        sources = row.sources or ("sft",) * len(row.completions)
        rows.append(asdict(row) | {"sources": sources})
    return rows
