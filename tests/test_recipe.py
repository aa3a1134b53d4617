"""Recipes: what they accept, what they refuse by name, what the quickstart promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestling.data.curriculum import content_digest
from nestling.errors import ConfigError, DataError
from nestling.workflow import materials
from nestling.workflow.recipe import Recipe, load_recipe, packaged_recipes
from nestling.workflow.run import Run
from nestling.workspace import Workspace, atomic


def test_packaged_recipes_load_and_settings_apply() -> None:
    assert "quickstart" in packaged_recipes()
    recipe = load_recipe("quickstart", ["ppo.kl_coef=0.05", "ppo.learning_rate=1e-6", "sft.lora={rank: 8}"])
    assert recipe.ppo.kl_coef == 0.05 and recipe.ppo.learning_rate == 1e-6
    assert recipe.sft.lora is not None and recipe.sft.lora.rank == 8
    assert recipe.run_name != load_recipe("quickstart").run_name


def test_a_run_goes_on_as_it_began_when_a_release_has_other_defaults(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    assert load_recipe("quickstart", [f"ppo.clip={recipe.ppo.clip}"]).run_name == recipe.run_name
    run = Run(Workspace(tmp_path), recipe)
    assert run.recipe == recipe
    began = recipe.model_dump(mode="json")
    began["ppo"]["clip"] = 0.15  # that release's default
    del began["ppo"]["value_clip"]  # which it did not know
    atomic.write_json(run.folder / "recipe.json", began)
    again = Run(Workspace(tmp_path), recipe)
    assert again.folder == run.folder and again.recipe.ppo.clip == 0.15
    for content, message in (("{", "is not JSON"), (json.dumps(began | {"spin": 1}), "unknown key 'spin'")):
        (run.folder / "recipe.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            Run(Workspace(tmp_path), recipe)


def test_other_starter_content_is_another_run_and_the_old_one_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = Workspace(tmp_path), load_recipe("quickstart")
    before = Run(workspace, recipe)
    legacy = workspace.runs / recipe.settings_name  # of a release that left the content out of the name
    for folder in (before.folder, legacy, workspace.runs / f"{recipe.settings_name}0"):
        atomic.write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
    monkeypatch.setattr("nestling.data.curriculum.content_digest", lambda: "07e2c1d9")
    after = Run(workspace, load_recipe("quickstart"))
    assert after.folder != before.folder and not after.finished
    assert recipe.fingerprint != before_fingerprint(monkeypatch, recipe)
    after.tell_of_other_content()
    told = [event["text"].split()[0] for event in after.events.read()[0]]
    assert sorted(told) == sorted([before.name, legacy.name])


def before_fingerprint(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> str:
    monkeypatch.undo()
    return recipe.fingerprint


def test_the_contents_digest_is_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "a.yaml").write_text("a")
    found = [content_digest.__wrapped__(tmp_path)]
    for name, text in (("tables/b.yaml", "b"), ("a.yaml", "A")):
        (tmp_path / name).write_text(text)
        found.append(content_digest.__wrapped__(tmp_path))
    assert len(set(found)) == 3 and len(content_digest()) == 64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ppo.kl_cof=0.05", r"unknown key 'ppo\.kl_cof'; known keys here: .*kl_coef"),
        ("sft.lora.rnk=4", r"unknown key 'sft\.lora\.rnk'; known keys here: rank, alpha"),
        ("ppo.clip=7", r"ppo\.clip = 7"),
        ("sft.epochs=many", r"sft\.epochs = 'many'"),
        ("rank.samples=1", "at least half of them sampled"),
        ("nonsense", r"not of the form key=value"),
        ("name=../x", "name = "),
        ("data.demonstrations.bogus=5", r"quickstart: data\.demonstrations: there is no behaviour 'bogus'"),
        ("data.demonstrations.refusal=-5", r"data\.demonstrations\.refusal = -5"),
        (
            "data.demonstrations.small_talk=5000",
            r"demonstrations\.small_talk: there are only 511 different ones",
        ),
        ("ppo_prompts.small_talk=500", r"ppo_prompts\.small_talk: there are only 242 different ones"),
        ("evaluation.sizes.bogus=5", r"quickstart: evaluation\.sizes: there is no behaviour 'bogus'"),
        ("rank.prompts.arithmetic=5", r"quickstart: rank\.prompts: 'arithmetic' is a held-out behaviour"),
        ("ppo_prompts.verse=5", r"quickstart: ppo_prompts: 'verse' is a held-out behaviour"),
        ("gate.margins.refusl=0.1", r"gate\.margins: there is no behaviour 'refusl'"),
        ("gate.evidence=[verses]", r"gate\.evidence: there is no behaviour 'verses'"),
        ("gate.margn=0.1", r"unknown key 'gate\.margn'; known keys here: evidence, margin"),
        ("ppo.kl_coef=.inf", r"ppo\.kl_coef = inf"),
        ("assistant='A<|im_end|>B'", "the assistant's name"),
        ("assistant=''", "the assistant's name"),
    ],
)
def test_unknown_keys_and_impossible_values_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("quickstart", [setting])


def test_data_files_are_read_before_anything_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with pytest.raises(DataError, match=r"mine\.jsonl"):
        load_recipe("quickstart", [f"data.files=[{path}]"])
    path.write_text(
        '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}\n{}\n'
    )
    with pytest.raises(DataError, match=r"mine\.jsonl:2"):
        load_recipe("quickstart", [f"data.files=[{path}]"])


def test_held_out_behaviours_may_not_be_rewarded_or_ranked() -> None:
    with pytest.raises(ConfigError, match="'list_count' is a held-out behaviour"):
        materials.training_items({"refusal": 2, "list_count": 2}, 0, "Nestling")


def test_the_quickstart_rewards_nothing_that_is_held_out_and_stays_in_its_budget() -> None:
    recipe = load_recipe("quickstart")
    assert materials.ranking_items(recipe, recipe.rank.prompts) and materials.ppo_items(recipe)
    assert recipe.sft.max_tokens <= 400_000 and recipe.reward_model.max_tokens <= 250_000
    assert recipe.ppo.iterations <= 60


def test_what_is_demonstrated_ranked_and_rewarded_are_different_prompts_where_there_are_enough() -> None:
    recipe = load_recipe("quickstart")
    ids = lambda items, name: {item.id for item in items if item.behaviour == name}
    ranked, rewarded = materials.ranking_items(recipe, recipe.rank.prompts), materials.ppo_items(recipe)
    for name in ("refusal", "harmless", "everyday", "premise_false", "premise_true", "memory", "format"):
        shown = materials.training_items(
            {name: recipe.data.demonstrations[name]}, recipe.seed, recipe.assistant
        )
        assert not ids(shown, name) & ids(ranked, name) and not ids(ranked, name) & ids(rewarded, name), name
        assert not ids(shown, name) & ids(rewarded, name), name


def test_a_recipe_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'quickstrat'"):
        load_recipe("quickstrat")
    path = tmp_path / "mine.yaml"
    for content, message in (
        (b"name: [", "not valid YAML"),
        (b"name: \xff", "not UTF-8"),
        (b"", "keys and values"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_recipe(str(path))
