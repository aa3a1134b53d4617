"""A recipe: every setting of a whole raising, in one YAML file."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, NonNegativeInt, model_validator

from nestling.compute.device import DTypeName, Hardware, detect
from nestling.config import Config, parse
from nestling.data import curriculum
from nestling.data.formats import Conversation, read_rows
from nestling.errors import ConfigError, DataError
from nestling.evaluation.answers import folder_identity
from nestling.generation.protocol import Sampling
from nestling.model.config import ModelConfig
from nestling.text.template import checked_name
from nestling.training.ppo.config import PPOConfig
from nestling.training.reward_model import RewardModelConfig
from nestling.training.sft import SFTConfig
from nestling.training.trained_part import require_a_block
from nestling.workflow.fetch import DEFAULT_BASE, local_base
from nestling.workflow.gate_rule import GateRule, refuse_halves, refuse_unknown


class HardwareConfig(Config):
    """What to compute with."""

    dtype: DTypeName = Field("auto", description="Number format; auto measures which is faster here.")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes every physical core.")
    workers: int = Field(
        0, ge=0, description="Rows or batches computed side by side, sharing the threads; 0 chooses."
    )

    def detect(self) -> Hardware:
        return detect(self.dtype, self.threads, self.workers)


class DataConfig(Config):
    """What supervised fine-tuning learns from."""

    demonstrations: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Conversations of the starter curriculum, by behaviour."
    )
    replay: int = Field(
        300, ge=0, description="General prompts answered by the base itself, so that it forgets nothing."
    )
    replay_max_tokens: int = Field(160, ge=1, description="Longest replayed answer in tokens.")
    files: list[str] = Field(
        default_factory=list, description="Further conversations: JSONL, JSON or CSV files."
    )
    own_repeats: int = Field(
        0,
        ge=0,
        le=100,
        description="How often the conversations of files are shown; 0 chooses by their number.",
    )
    validation_share: float = Field(
        0.05, gt=0, lt=0.5, description="Share of the samples kept for validation."
    )


class RankConfig(Config):
    """Sampling answers and ranking them by the checks."""

    prompts: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Training prompts of the curriculum, by behaviour."
    )
    samples: int = Field(3, ge=1, description="Answers sampled from the model, per prompt.")
    written: int = Field(2, ge=0, description="Written answers beside them, good ones first.")
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature.")
    max_new_tokens: int = Field(64, ge=1, description="Longest sampled answer in tokens.")
    validation_share: float = Field(
        0.15, gt=0, lt=0.5, description="Share of the templates kept for validation."
    )
    seed: int = Field(0, ge=0, description="Sampling seed.")

    def sampling(self, seed: int) -> Sampling:
        """How one answer is sampled."""
        return Sampling(temperature=self.temperature, max_tokens=self.max_new_tokens, seed=seed)

    @model_validator(mode="after")
    def _at_least_half_from_the_model(self) -> RankConfig:
        if self.samples + self.written < 4 or self.samples < self.written:
            raise ValueError("a ranking needs at least 4 answers, at least half of them sampled")
        return self


class EvaluationConfig(Config):
    """How the recipe's own evaluations ask."""

    max_new_tokens: int = Field(96, ge=1, description="Longest answer in tokens.")
    sizes: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Prompts by behaviour; the suite's own otherwise."
    )
    seed: int = Field(0, ge=0, description="Which prompts are chosen.")


class Recipe(Config):
    """All settings of a raising. See ``recipes/quickstart.yaml`` for one with comments."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="Names the run's folder.")
    about: str = Field("", description="One line for people.")
    base: str = Field(
        DEFAULT_BASE, description="Base model: a known name, a folder, a .gguf file or a hub id."
    )
    assistant: str = Field("Nestling", description="The name the assistant goes by.")
    seed: int = Field(0, ge=0, description="Choice of the curriculum's items.")
    hardware: HardwareConfig = Field(HardwareConfig(), description="What to compute with.")
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="Time between checkpoints of training; 0 is every step."
    )
    minutes: float | None = Field(
        None, gt=0, description="How long it may take on this machine, about: less is learnt from, in proportion. "
        "null takes what it takes.",
    )  # fmt: skip
    data: DataConfig = Field(DataConfig(), description="What fine-tuning learns from.")
    sft: SFTConfig = Field(SFTConfig(), description="Supervised fine-tuning.")
    rank: RankConfig = Field(RankConfig(), description="Rankings.")
    reward_model: RewardModelConfig = Field(RewardModelConfig(), description="Reward model.")
    ppo: PPOConfig = Field(PPOConfig(), description="PPO.")
    ppo_prompts: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Training prompts that PPO answers, by behaviour."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="The recipe's evaluations."
    )
    gate: GateRule = Field(GateRule(), description="What a version must show to be served.")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every setting, of files and of the curriculum: whatever differs is another training.

        Raises:
            DataError: a data file cannot be read.
        """
        return self._digest(self.model_dump(mode="json") | {"curriculum": curriculum.content_digest()})

    @property
    def run_name(self) -> str:
        """Tells runs apart by what is set and by the contents of files, then by the curriculum's. A default counts for
        nothing: a release with one more setting still knows the runs of the release before (what they began with is
        kept in their folder). One with other content does not: half a run of each would be neither.

        Raises:
            DataError: a data file cannot be read.
        """
        return f"{self.settings_name}-{curriculum.content_digest()[:6]}"

    @property
    def settings_name(self) -> str:
        """What the names of all runs with the same settings and files begin with."""
        return f"{self.name}-{self._digest(self.model_dump(mode='json', exclude_defaults=True))[:8]}"

    def _digest(self, decides: dict[str, Any]) -> str:
        if base := local_base(self.base):
            decides["base"] = folder_identity(base)
        if self.data.files:
            decides["contents"] = [file_digest(Path(name)) for name in self.data.files]
        return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        what = f"this file cannot be read: {error.strerror}."
        raise DataError(what, where=str(path), remedy="Check the path.") from error


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with Nestling."""
    folder = resources.files("nestling") / "recipes"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(
    name_or_path: str,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
) -> Recipe:
    """Read a packaged recipe by name or a YAML file, with ``section.key=value`` settings and data ``files`` on top.

    Raises:
        ConfigError: no such recipe, broken YAML, an unknown key or behaviour, an impossible value; by place and name.
        DataError: a data file that cannot be used, by its line.
    """
    values = _read(name_or_path)
    values |= dict(overrides or {})
    for setting in settings:
        apply_setting(values, setting)
    recipe = parse(Recipe, values, name_or_path)
    data = recipe.data.model_copy(update={"files": [*recipe.data.files, *files]})
    recipe = recipe.model_copy(update={"data": data})
    check_demonstrations(recipe, name_or_path)
    check_prompts("rank.prompts", recipe.rank.prompts, recipe.seed, name_or_path)
    check_prompts("ppo_prompts", recipe.ppo_prompts, recipe.seed, name_or_path)
    check_behaviours(recipe.evaluation.sizes, f"{name_or_path}: evaluation.sizes")
    refuse_unknown(recipe.gate)
    refuse_halves(recipe.gate, recipe.evaluation.sizes)
    checked_name(recipe.assistant)
    for name in recipe.data.files:
        deque(read_rows(Path(name), Conversation), maxlen=0)  # a broken line is named now, not after an hour
    return recipe


def _read(name_or_path: str) -> dict[str, Any]:
    """What a recipe's YAML says."""
    if name_or_path.endswith((".yaml", ".yml")):
        return read_yaml(Path(name_or_path))
    if name_or_path in packaged_recipes():
        return read_yaml(resources.files("nestling") / "recipes" / f"{name_or_path}.yaml")
    known = ", ".join(packaged_recipes())
    raise ConfigError(f"there is no recipe {name_or_path!r}.", remedy=f"Use one of {known}, or a .yaml file.")


def read_yaml(source: Traversable) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML or something else than keys and values.
    """
    where = str(source)
    try:
        values = yaml.safe_load(source.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}.",
            where=where,
            remedy="Check that the file is there and yours to read.",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error}.", where=where, remedy="Save the file as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"is not valid YAML: {error}",
            where=where,
            remedy="Mend the line it names; recipes/quickstart.yaml is an example.",
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            "must hold keys and values.",
            where=where,
            remedy="Begin with `name: mine`; recipes/quickstart.yaml is an example.",
        )
    return values


def kept_recipe(path: Path, recipe: Recipe) -> Recipe:
    """The settings that a run began with, from its folder; ``recipe``'s when it has not begun.

    A run goes on as it began, also when a later release has other defaults.

    Raises:
        ConfigError: the file was changed, or is a later release's.
    """
    if not path.exists():
        return recipe
    try:
        return parse(Recipe, json.loads(path.read_text("utf-8")), str(path))
    except ValueError as error:
        raise ConfigError(
            f"is not JSON: {error}.", where=str(path), remedy="Move the run's folder away to begin it anew."
        ) from error


def check_shape(recipe: Recipe, config: ModelConfig) -> None:
    """Refuse settings that the base's shape does not allow, before the first stage rather than in a later one.

    Raises:
        ConfigError: it names the key.
    """
    sections = {"sft": recipe.sft, "reward_model": recipe.reward_model, "ppo": recipe.ppo}
    for name, stage in sections.items():
        require_a_block(config, stage.frozen_blocks, f"{name}.frozen_blocks")


def check_behaviours(counts: Iterable[str], where: str, *, rewarded: bool = False) -> None:
    """Refuse unknown behaviours, and held-out ones where answers are ranked or rewarded.

    Raises:
        ConfigError: naming the behaviour and ``where`` it stands.
    """
    known = curriculum.load().behaviours
    for name in counts:
        if name not in known:
            remedy = f"Use one of {', '.join(known)}."
            raise ConfigError(f"there is no behaviour {name!r}.", where=where, remedy=remedy)
        if rewarded and known[name].held_out:
            what = f"{name!r} is a held-out behaviour: it may neither be ranked nor rewarded."
            raise ConfigError(what, where=where, remedy="Remove it from rank.prompts and ppo_prompts.")


def check_demonstrations(recipe: Recipe, where: str) -> None:
    """Refuse unknown behaviours, and to demonstrate more than there is.

    Raises:
        ConfigError: naming the behaviour and ``where`` it stands.
    """
    counts = recipe.data.demonstrations
    check_behaviours(counts, f"{where}: data.demonstrations")
    for name, count in counts.items():
        there = len(curriculum.demonstrations(recipe.seed, {name: count}))
        _check_count(f"{where}: data.demonstrations.{name}", count, there)


def check_prompts(key: str, counts: Mapping[str, int], seed: int, where: str) -> None:
    """Refuse unknown and held-out behaviours among prompts to rank or reward, and to ask for more than there are.

    Raises:
        ConfigError: naming the behaviour and ``where`` it stands.
    """
    check_behaviours(counts, f"{where}: {key}", rewarded=True)
    for name, count in counts.items():
        there = len(curriculum.items("train", seed, [name], count))
        _check_count(f"{where}: {key}.{name}", count, there)


def _check_count(where: str, asked: int, there: int) -> None:
    if there < asked:  # fewer would be used, and nobody told
        remedy = f"Write {there} or less."
        raise ConfigError(f"there are only {there} different ones.", where=where, remedy=remedy)


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Apply one ``--set section.key=value``; the value is read as YAML.

    Raises:
        ConfigError: it is not of that form.
    """
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{setting!r} is not of the form key=value.", where="--set", remedy="Example: ppo.kl_coef=0.05"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the value of {key!r} cannot be read: {error}",
            where="--set",
            remedy="Write it as in YAML, such as ppo.kl_coef=0.05.",
        ) from None
    # YAML reads 1e-5 as text; a number was meant.
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    section = values
    for part in parts[:-1]:
        inner = section.get(part)
        if not isinstance(inner, dict):
            inner = section[part] = {}
        section = inner
    section[parts[-1]] = value
