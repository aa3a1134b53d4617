"""From people's judgments to the next version, which is served if and only if it is better."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nestling.config import parse
from nestling.data.curriculum import Item, content_digest
from nestling.errors import DataError, WorkspaceError
from nestling.evaluation.compare import PairedGain
from nestling.evaluation.people import ComparedPair, agreement, compared_pairs, judged_gain, preferences
from nestling.feedback.export import Row
from nestling.feedback.snapshot import Snapshot
from nestling.model.hf_folder import LoadedModel, read_config, save_model
from nestling.rewards.predictor import LEAST, Predictor, answer_features, fit_predictor
from nestling.rewards.terms import PeopleScore
from nestling.text.tokenizer import Tokenizer
from nestling.training.preference import (
    DPOConfig,
    KTOConfig,
    train_preference,
)
from nestling.workflow import lessons, materials, stages
from nestling.workflow.gate import Judged
from nestling.workflow.learn_recipe import ACCOUNTS, HELD_OUT, TRUSTED, LearnRecipe
from nestling.workflow.raising import Raising
from nestling.workflow.recipe import (
    DataConfig,
)
from nestling.workflow.stages import Bench
from nestling.workspace import Version, Workspace, atomic

TEMPLATE_SHARE = 0.15
"""Of the prompts, kept to choose the best weights by; not people, who are kept to measure by."""
VALIDATED = 120
"""Pairs, or answers, that the best weights are chosen by, about and at most: they are read every few steps."""


class Learn(Raising):
    """One snapshot, one method, one version to begin from: one new version, and the gate's verdict on it."""

    stage_names = ("train", "gate-base", "gate-learned")

    def __init__(
        self, workspace: Workspace, recipe: LearnRecipe, snapshot: Snapshot, parent: Version,
        name: str | None = None,
    ) -> None:  # fmt: skip
        said = recipe.model_dump(mode="json", exclude_defaults=True)
        decides = [said, parent.name, content_digest()]
        own = f"learn-{snapshot.folder.name[:8]}-{materials.digest(decides)[:8]}"
        super().__init__(
            workspace, name or own
        )  # one that was begun keeps its name, whatever the defaults are now
        self.recipe, self.snapshot, self.parent = recipe, snapshot, parent
        self.title = f"{recipe.name} ({recipe.method})"
        self.evaluation, self.gate = recipe.evaluation, recipe.gate
        self.hardware, self.checkpoint_seconds = recipe.hardware, recipe.checkpoint_seconds

    @classmethod
    def unfinished(cls, workspace: Workspace) -> Learn | None:
        """The newest that was begun, has not come to its end and still can."""
        for begun in cls.all(workspace):
            if not begun.over and not begun.snapshot.manifest.erased:
                return begun
        return None

    @classmethod
    def all(cls, workspace: Workspace) -> Iterator[Learn]:
        """Every learning that can be opened, the newest first; not one whose parent or snapshot is gone."""
        for path in sorted(workspace.runs.glob("learn-*/learn.json"), key=lambda path: -path.stat().st_mtime):
            with suppress(WorkspaceError):
                yield cls.reopened(workspace, path)

    @property
    def over(self) -> bool:
        """Whether it came to its end, or its judgments can teach nothing, however often it is tried."""
        events = self.events.read()[0]
        return self.finished or (bool(events) and events[-1].get("hopeless", False))

    @classmethod
    def reopened(cls, workspace: Workspace, path: Path) -> Learn:
        """The one whose ``learn.json`` this is.

        Raises:
            WorkspaceError: the file, or what it names, is not there or damaged.
        """
        try:
            kept = json.loads(path.read_text("utf-8"))
            recipe = parse(LearnRecipe, kept["recipe"], str(path))
            snapshot = Snapshot(workspace.root / "snapshots" / kept["snapshot"])
            snapshot.manifest  # noqa: B018  it must be there
            parent = workspace.versions.with_weights(kept["parent"])
            return cls(workspace, recipe, snapshot, parent, path.parent.name)
        except (OSError, ValueError, KeyError) as error:
            remedy = "Move the run's folder away to begin anew."
            raise WorkspaceError(f"this cannot be read: {error}.", where=str(path), remedy=remedy) from error

    def steps(self) -> None:
        self.folder.chmod(0o700)  # transcripts quote what people wrote
        kept = {"snapshot": self.snapshot.folder.name, "parent": self.parent.name,
                "recipe": self.recipe.model_dump(mode="json")}  # fmt: skip
        atomic.write_json(self.folder / "learn.json", kept)
        learned = self.made("train", self.train)
        base = self.workspace.versions.root(self.parent)
        base_results = self.measured(base, None, "gate-base")
        self.gated(learned, base, base_results, "gate-learned", self.judged)

    # Training -----------------------------------------------------------------------------------------------------

    def bench(self) -> Bench:
        return replace(super().bench(), allowed=self.refuse_erased)

    def train(self, bench: Bench) -> Version:
        """The new version, by the recipe's method."""
        by = {"ppo": self.by_ppo, "best-of-n": self.by_choice}
        return by.get(self.recipe.method, self.by_preference)(bench)

    def by_choice(self, bench: Bench) -> Version:
        """The parent's weights, and beside them what people's scores promise."""
        if done := bench.published("learn"):
            return done
        self.refuse_erased()
        predictor = self.predictor(bench, bench.load(self.parent))
        if predictor is None:
            raise DataError(
                f"snapshot {self.snapshot.folder.name} has fewer than {LEAST} scores.",
                where=str(self.snapshot.folder), remedy="Collect thumbs or scores, or learn by dpo from comparisons.",
            )  # fmt: skip
        card = stages.child_card("best-of-n", self.parent, self.snapshot.manifest.hashes, {})
        told = card.model_validate(card.model_dump() | self.lineage() | {"best_of": self.recipe.best_of})

        def build(folder: Path) -> None:
            for path in self.parent.folder.iterdir():
                if path.name != "card.json":
                    shutil.copy2(path, folder / path.name)
            predictor.save(folder)

        return bench.publish("learn", build, told)

    def predictor(self, bench: Bench, model: LoadedModel) -> Predictor | None:
        """What people's scores promise, fitted on the model's states; None where there are too few."""
        encode = lambda row: materials.answer_ids(model.tokenizer, row, row["completion"][0]["content"])
        longest = model.config.context_length
        taught = lessons.taught(self.snapshot, "scores", model.tokenizer)
        rows = [(row, *encode(row)) for row in taught]
        rows = [
            (row, prompt, answer)
            for row, prompt, answer in rows
            if answer and len(prompt) + len(answer) <= longest
        ]
        scores = torch.tensor([float(row["score"]) for row, _, _ in rows])
        if len(rows) < LEAST or float(scores.std()) == 0:
            return None
        features = answer_features(
            model.decoder, [(prompt, [answer]) for _, prompt, answer in rows], workers=bench.workers
        )
        weights = torch.tensor([float(row["weight"]) for row, _, _ in rows])
        return fit_predictor(features, scores, weights, self.recipe.seed)

    def by_preference(self, bench: Bench) -> Version:
        """DPO from rankings, KTO from labels."""
        if done := bench.published("learn"):
            return done
        self.refuse_erased()
        config: DPOConfig | KTOConfig = self.recipe.dpo if self.recipe.method == "dpo" else self.recipe.kto
        model = bench.load(self.parent)
        if isinstance(config, DPOConfig):
            items: Sequence[Any] = lessons.pairs(self.snapshot, model, config.sft_coef > 0)
        else:
            items = lessons.labels(self.snapshot, model, self.recipe.seed)
        if not items:
            raise DataError(
                f"no judgment of snapshot {self.snapshot.folder.name} says which answer is better.",
                where=str(self.snapshot.folder),
                remedy="Ties alone teach nothing: collect judgments that prefer one answer.",
            )
        share = min(TEMPLATE_SHARE, VALIDATED / len(items))
        train, held = materials.split_off(items, share, key=lambda item: json.dumps(item.prompt))
        if not held:  # few prompts: the newest is what the best weights are chosen by
            train, held = train[:-1], train[-1:]
        report = train_preference(
            model, train, held, config, bench.folder, bench.events,
            checkpoint_seconds=bench.checkpoint_seconds, workers=bench.workers,
        )  # fmt: skip
        bench.events.append("report", stage="train", text=report.remark, **asdict(report))
        metrics: dict[str, Any] = {self.recipe.method: asdict(report)}
        card = stages.child_card(self.recipe.method, self.parent, self.snapshot.manifest.hashes, metrics)
        told = card.model_validate(card.model_dump() | self.lineage())
        return bench.publish("learn", lambda folder: save_model(folder, model), told)

    def by_ppo(self, bench: Bench) -> Version:
        """A reward model from people's rankings and the checks', then PPO against it."""
        if done := bench.published("learn"):
            return done
        self.refuse_erased()
        recipe = self.recipe
        items = self.curriculum(recipe.rank.prompts)
        ranked = stages.rank(bench.at("rank"), self.parent, items, recipe.rank)
        tokenizer = Tokenizer.load(self.parent.folder)
        said = lessons.taught(self.snapshot, "rankings", tokenizer)
        rows = [lessons.as_ranking(row) for row in said] + ranked
        scorer = stages.reward_model(
            bench.at("reward_model"), self.parent, rows, recipe.reward_model, TEMPLATE_SHARE
        )
        asked = self.curriculum(recipe.ppo_prompts)
        data = DataConfig(demonstrations=recipe.rehearsal, replay=0)
        people = None
        if recipe.ppo.people_weight > 0:
            frozen = bench.load(self.parent)
            if predictor := self.predictor(bench, frozen):
                decoder = frozen.decoder.requires_grad_(False)
                people = PeopleScore(decoder, predictor, recipe.ppo.people_cap, workers=bench.workers)
        return stages.ppo(
            bench.at("ppo"), self.parent, scorer, [*asked, *self.prompts(tokenizer)], recipe.ppo, data, recipe.seed,
            "learn", self.lineage(), people,
        )  # fmt: skip

    def refuse_erased(self) -> None:
        """Nobody learns on from what was taken back meanwhile."""
        if self.snapshot.manifest.erased:
            raise DataError(
                "somebody took judgments back while they were learnt from; nothing is published.",
                where=str(self.snapshot.folder), remedy="Run `nestling learn` again: it takes a new snapshot.",
            )  # fmt: skip

    def curriculum(self, counts: dict[str, int]) -> list[Item]:
        """Training prompts of the starter curriculum."""
        return materials.training_items(counts, self.recipe.seed, self.parent.card.assistant)

    def prompts(self, tokenizer: Tokenizer) -> Iterator[Item]:
        """What people asked, for PPO; no check says what is right."""
        seen: set[str] = set()
        for kind in ("rankings", "scores"):
            for row in lessons.taught(self.snapshot, kind, tokenizer):
                key = json.dumps(row["prompt"], sort_keys=True)
                if key not in seen:
                    seen.add(key)
                    yield Item(
                        id=f"people:{len(seen)}", behaviour="people", split="train", template=str(len(seen)),
                        messages=tuple(row["prompt"]), check={},
                    )  # fmt: skip

    def lineage(self) -> dict[str, Any]:
        """What the card of the new version says of where it comes from."""
        manifest = self.snapshot.manifest
        return {
            "snapshot": manifest.name,
            "judgments": {part: len(numbers) for part, numbers in manifest.judgments.items()},
            "people": manifest.people,
            "learnt": {
                "judgments": len(
                    {
                        n
                        for part, some in manifest.judgments.items()
                        if part.startswith("train/")
                        for n in some
                    }
                ),
                "people": manifest.people.get("train", 0),
            },
        }

    # Evidence -----------------------------------------------------------------------------------------------------

    def judged(self, candidate: Version, incumbent: Version) -> Judged:
        """What the candidate gains in agreement with people who were held out of this snapshot.

        A poisoned batch must not vouch for itself: on what was trusted before it came, and on those of the held-out
        whom the owner gave accounts, nothing may be lost. Identities of an open page cost nothing.
        """
        pairs, parts = self.evidence()
        if len(parts[ACCOUNTS]) == len(parts[HELD_OUT]):
            parts[ACCOUNTS] = []  # all of them are accounts: the evidence itself
        gains: dict[str, PairedGain] = {}
        for part, since, new, old in self.agreements(candidate, incumbent, pairs, parts):
            gain = judged_gain(new, old, [pairs[at] for at in parts[part]])
            self.events.append(
                "report", stage="gate-learned",
                text=f"Of {len(new)} pairs of {part} {candidate.name} goes with people on {sum(new) / len(new):.1%}, "
                f"{incumbent.name} on {sum(old) / len(old):.1%}, by what has moved since {since}.",
            )  # fmt: skip
            if part not in gains or gain.gain.upper(self.gate.confidence) < 0:
                gains[part] = gain
        return Judged(HELD_OUT, gains.pop(HELD_OUT, None), gains, (TRUSTED, ACCOUNTS))

    def evidence(self) -> tuple[list[ComparedPair], dict[str, list[int]]]:
        """The pairs that people who were held out have compared, gold and earlier ones among them, each once; and by
        part which of them belong to it."""
        reference = self.workspace.versions.root(self.parent)
        tokenizer, longest = Tokenizer.load(reference.folder), read_config(reference.folder).context_length
        held, trusted = self.snapshot.rows("held_out", "rankings"), self.trusted_rows()
        both = {row["judgment"] for row in held} & {row.get("judgment") for row in trusted}
        rows = [(row, True, row["judgment"] in both) for row in held]
        rows += [(row, False, True) for row in trusted if row.get("judgment") not in both]
        pairs: list[ComparedPair] = []
        parts: dict[str, list[int]] = {HELD_OUT: [], TRUSTED: [], ACCOUNTS: []}
        for row, is_held, is_trusted in rows:
            for pair in compared_pairs([row], tokenizer, longest):
                belongs = {HELD_OUT: is_held, TRUSTED: is_trusted,
                           ACCOUNTS: is_held and pair.person.startswith("account:")}  # fmt: skip
                for part in (part for part, does in belongs.items() if does):
                    parts[part].append(len(pairs))
                if is_held and self.snapshot.manifest.split == "prompts":
                    pair = replace(pair, person=f"asked {pair.prompt}")  # few people: prompts are resampled
                pairs.append(pair)
        return pairs, parts

    def agreements(
        self,
        candidate: Version,
        incumbent: Version,
        pairs: Sequence[ComparedPair],
        parts: dict[str, list[int]],
    ) -> Iterator[tuple[str, str, list[float], list[float]]]:
        """How far candidate and incumbent go with people on the pairs of each part that has any, and since when.

        For the evidence a likelihood is compared with the incumbent's: with the base's, a second step in the same
        direction would change no sign and could not be seen. What is guarded is compared with the base's first, where
        a version that leaves it alone loses nothing by chance; then with the incumbent's, as a step back need not come
        behind the base. One that chooses among several answers is taken by what it would choose, and one beside it by
        what it has moved since the base.
        """
        bench = self.bench()
        likelihoods: dict[str, list[float]] = {}
        chooses = {v.name: Predictor.load(v.folder) for v in (candidate, incumbent)}

        def likelihood(version: Version) -> list[float]:
            if version.name not in likelihoods:
                likelihoods[version.name] = preferences(bench.load(version), pairs, bench.workers)
            return likelihoods[version.name]

        def goes(version: Version, reference: Version) -> list[float]:
            if predictor := chooses[version.name]:
                return self.choices(bench.load(version), predictor, pairs)
            return agreement(likelihood(version), likelihood(reference))

        base = self.workspace.versions.root(self.parent)
        for part, chosen in parts.items():
            since = [incumbent] if part == HELD_OUT else [base, incumbent]
            if any(chooses.values()) or base == incumbent:
                since = [base]
            for version in since if chosen else ():
                new, old = goes(candidate, version), goes(incumbent, version)
                yield part, version.name, [new[at] for at in chosen], [old[at] for at in chosen]

    def choices(self, model: LoadedModel, predictor: Predictor, pairs: Sequence[ComparedPair]) -> list[float]:
        """Of each pair whether it would choose what people preferred."""
        groups = [(pair.prompt, [pair.better, pair.worse]) for pair in pairs]
        features = answer_features(model.decoder, groups, workers=self.bench().workers)
        merits = predictor.merit(features).view(-1, 2)
        return agreement((merits[:, 0] - merits[:, 1]).tolist(), [0.0] * len(pairs))

    def trusted_rows(self) -> list[Row]:
        """Gold, and what earlier promotions were measured by; a snapshot learns from neither."""
        rows = self.snapshot.gold() + anchors(self.workspace, but=self.snapshot)
        once = {row.get("judgment", -1 - at): row for at, row in enumerate(rows)}
        return list(once.values())


def anchors(workspace: Workspace, but: Snapshot | None = None) -> list[Row]:
    """The rankings that accepted versions were measured by, but for one snapshot's."""
    rows = []
    for version in workspace.versions.list():
        name = (version.card.model_extra or {}).get("snapshot")
        if name and version.card.state == "accepted" and (but is None or name != but.folder.name):
            rows += Snapshot(workspace.root / "snapshots" / name).rows("held_out", "rankings")
    return rows
