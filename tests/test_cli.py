"""Every verb as a person types it, in a small workspace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from nestling.cli import cli
from nestling.cli.options import settings_of
from nestling.compute.workers import Workers
from nestling.errors import ConfigError, DataError, WorkspaceError
from nestling.generation.best_of import BestOf
from nestling.generation.protocol import Request, Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import load_model, save_model
from nestling.rewards.predictor import fit_predictor
from nestling.workflow.recipe import Recipe, load_recipe
from nestling.workflow.stages import choosing
from nestling.workspace import Card, Workspace
from test_text_support import user
from tiny import tiny_model

TALK = '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a base that is served and a version made from it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "base").mkdir()
    save_model(folder / "base", tiny_model(context_length=2048))
    assert "v1-base" in say(folder / "nest", "fetch", str(folder / "base"), "--dtype", "float32")
    tuned = tiny_model(1, context_length=2048)
    card = Card(kind="sft", assistant="Nestling", parents=["v1-base"], licence="Apache-2.0")
    Workspace(folder / "nest").versions.publish(lambda f: save_model(f, tuned), card)
    return folder / "nest"


def say(home: Path | None, *words: str, text: str = "") -> str:
    """Run a command that should do well; returns all it wrote."""
    place = ["-w", str(home)] if home else []
    result = CliRunner().invoke(cli, [*words, *place], input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def commands(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command with the words that reach it."""
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        path = (*words, name)
        found += [path, *(commands(command, path) if isinstance(command, click.Group) else [])]
    return found


@pytest.mark.parametrize("words", commands(cli), ids=" ".join)
def test_every_command_explains_itself_and_each_option(words: tuple[str, ...]) -> None:
    told = say(None, *words, "--help")
    assert "Usage:" in told
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word) or command
    for option in command.params:
        if isinstance(option, click.Option):
            assert (option.help or "").partition("[default")[0].strip(), f"{' '.join(words)} {option.name}"


def test_every_setting_of_a_recipe_is_documented() -> None:
    told = CliRunner(env={"COLUMNS": "400"}).invoke(cli, ["run", "--settings"])
    assert told.exit_code == 0, told.output
    lines = {line.split()[0]: " ".join(line.split()) for line in told.output.splitlines() if line.strip()}
    for name, field in settings_of(Recipe):
        assert field.description and " ".join(field.description.split()) in lines[name], name
    assert "whole number >= 0 0" in lines["hardware.threads"] and "mapping" in lines["gate.margins"]
    assert "auto or float32 or" in lines["hardware.dtype"]


VERBS = "up run fetch sft rank reward-model ppo evaluate compare chat serve versions export data doctor"


def test_the_list_of_commands_is_the_specified_one() -> None:
    told = say(None, "--help")
    assert all(f"\n  {name} " in told for name in VERBS.split())


def test_versions_are_listed_shown_promoted_and_rolled_back(home: Path) -> None:
    told = say(home, "versions", "list")
    assert "v1-base" in told and "v2-sft" in told
    assert json.loads(say(home, "versions", "show", "v2-sft"))["parents"] == ["v1-base"]
    say(home, "versions", "promote", "v2-sft")
    assert "v1-base is served again" in say(home, "versions", "rollback")
    with pytest.raises(WorkspaceError, match="v9"):
        say(home, "versions", "promote", "v9-none")


def test_a_damaged_card_hides_no_other_version(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "versions", tmp_path / "versions")
    (tmp_path / "versions" / "v2-sft" / "card.json").write_text("{")
    told = say(tmp_path, "versions", "list")
    assert "v1-base" in told and "damaged" in told and "v2-sft/card.json: the card cannot be read" in told
    assert "versions)" in say(tmp_path, "doctor")


def test_a_reward_model_is_not_asked_for_answers(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "versions", tmp_path / "versions")
    Workspace(tmp_path).versions.publish(lambda folder: None, Card(kind="reward_model"))
    for words in (["chat", "--version"], ["evaluate"], ["compare", "v1-base"], ["sft", "--version"]):
        with pytest.raises(WorkspaceError, match="'v3-reward-model' is a reward model"):
            say(tmp_path, *words, "v3-reward-model")
    with pytest.raises(WorkspaceError, match="is a reward model"):
        say(tmp_path, "export", str(tmp_path / "out.GGUF"), "--version", "v3-reward-model")


def test_data_is_shown_and_checked_by_line(home: Path, tmp_path: Path) -> None:
    assert "refusal" in say(None, "data", "starter") and "check" in say(
        None, "data", "starter", "--behaviour", "refusal"
    )
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(TALK)
    bad.write_text(TALK + '{"messages": []}\n')
    assert "1 good rows" in say(None, "data", "check", str(good))
    told = CliRunner().invoke(cli, ["data", "check", str(bad)])
    assert told.exit_code == 1 and "bad.jsonl:2: " in told.output
    told = say(home, "data", "show", str(good))
    assert "[H][e][l][l][o]" in told and "tokens are trained" in told
    with pytest.raises(DataError, match="no row 7"):
        say(home, "data", "show", str(good), "--row", "7")


SMALL = ["--split", "gate", "--prompts", "2", "--max-new-tokens", "4", "--dtype", "float32", "--threads", "1"]


def test_evaluate_writes_every_version_and_compare_the_gains(home: Path, tmp_path: Path) -> None:
    table = say(
        home, "evaluate", "v2-sft", *SMALL, "--json", str(tmp_path / "e"), "--html", str(tmp_path / "h")
    )
    assert "v1-base" in table and "v2-sft" in table and (tmp_path / "h").read_text().startswith("<!")
    base, tuned = json.loads((tmp_path / "e").read_text())
    assert (base["name"], tuned["name"]) == ("v1-base", "v2-sft")
    refusal = tuned["figures"]["refusal"]
    assert refusal["n"] == 2 and refusal["low"] <= refusal["rate"] <= refusal["high"]
    assert {"messages", "answer", "passed", "reason"} <= tuned["rows"][0].keys()
    say(home, "compare", "v2-sft", "v1-base", *SMALL, "--json", str(tmp_path / "c"))
    compared = json.loads((tmp_path / "c").read_text())
    gain = compared["differences"]["refusal"]
    assert gain["wins"] + gain["ties"] + gain["losses"] == gain["n"] == 2


def test_ones_own_questions_are_asked_and_counted_by_category(home: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [
        ("When do you open?", "hours", ["nine"]),
        ("And on Sunday?", "hours", ["closed"]),
        ("Hi", "", ["a", "e"]),
    ]
    questions.write_text(
        "".join(
            json.dumps({"prompt": text, "check": {"name": "mentions", "any": words}, "category": category})
            + "\n"
            for text, category, words in rows
        )
    )
    asked = ["--questions", str(questions), *SMALL[4:]]
    table = say(home, "evaluate", "v2-sft", *asked, "--json", str(tmp_path / "own"))
    assert "hours" in table and "your own questions" in table
    _, tuned = json.loads((tmp_path / "own").read_text())
    assert [row["messages"][-1]["content"] for row in tuned["rows"]] == [text for text, _, _ in rows]
    assert (
        tuned["figures"]["own/hours"]["n"] == 2
        and tuned["figures"]["all_own"]["n"] == 3
        and tuned["prose"] == []
    )
    say(home, "compare", "v2-sft", "v1-base", *asked)
    questions.write_text('{"prompt": "Hi", "check": {"name": "no such check"}}\n')
    with pytest.raises(DataError, match=r"questions.jsonl:1.*no such check"):
        say(home, "evaluate", "v2-sft", *asked)


def test_memory_that_runs_out_is_said_in_one_line(tmp_path: Path) -> None:
    """A model larger than the address space that the process may have."""
    workspace = Workspace(tmp_path / "nest")
    large = tiny_model(
        hidden_size=768, intermediate_size=3072, num_heads=12, num_kv_heads=4, head_dim=64, num_layers=8
    )
    workspace.versions.publish(lambda folder: save_model(folder, large), Card(kind="base"))
    workspace.versions.promote("v1-base", "to be loaded")
    code = (
        "import resource, sys\n"
        "from nestling.cli import main, talk\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20), size + (48 << 20)))\n"
        f"sys.argv = ['nestling', 'chat', '-w', {str(workspace.root)!r}, '--dtype', 'float32', '--threads', '1']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="Hi\n", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "there is not enough memory" in done.stderr and "goes on from here" in done.stderr


def test_export_writes_folders_and_gguf_files_that_say_the_same(home: Path, tmp_path: Path) -> None:
    say(home, "export", str(tmp_path / "hf"), "--version", "v2-sft")
    say(home, "export", str(tmp_path / "m.gguf"), "--version", "v2-sft", "--gguf", "f32")
    prompt = [3, 1, 4, 1, 5]
    greedy = [Sampling(temperature=0, max_tokens=16)]
    models = [load_model(tmp_path / name, torch.float32) for name in ("hf", "m.gguf")]
    engines = [SideBySide(model, Workers(), max_batch=1) for model in models]
    first, second = (engine.generate_ids([prompt], greedy)[0].token_ids for engine in engines)
    assert first == second
    with pytest.raises(WorkspaceError, match="exist"):
        say(home, "export", str(tmp_path / "hf"))


def test_chat_streams_an_answer_and_ends(home: Path) -> None:
    told = say(home, "chat", "--max-tokens", "5", "--temperature", "0", text="Hello\n/new\n/quit\n")
    greeting, answer, *_ = (line.strip() for line in told.splitlines())
    assert "Nestling (v1-base)" in greeting and answer.lstrip("> "), told


def test_chat_gives_the_answer_that_people_would_like_best(home: Path, tmp_path: Path) -> None:
    """A version of best of n answers in a terminal as it does when it is served."""
    shutil.copytree(home / "versions", tmp_path / "versions")
    workspace, model = Workspace(tmp_path), tiny_model(1, context_length=2048)
    features = torch.randn(30, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def build(folder: Path) -> None:
        save_model(folder, model)
        fit_predictor(features, features[:, 0].sigmoid()).save(folder)

    card = Card(kind="sft", assistant="Nestling", parents=["v1-base"], licence="Apache-2.0", best_of=4)
    version = workspace.versions.publish(build, card)
    told = say(
        tmp_path,
        "chat",
        "--version",
        version.name,
        "--max-tokens",
        "12",
        "--seed",
        "3",
        text="Hello\n/quit\n",
    )
    loaded = load_model(version.folder, torch.float32)
    sampling = Sampling(0.7, top_p=0.95, max_tokens=12, seed=4)
    engine = choosing(SideBySide(loaded, Workers(), max_batch=4), version, loaded)
    assert isinstance(engine, BestOf) and engine.count == 4
    request = Request([user("Hello")], sampling)
    [best], [first] = engine.generate([request]), engine.engine.generate([request])
    assert best.text.strip() and best.text != first.text  # or it would say nothing about choosing
    assert best.text.strip() in told


@pytest.mark.parametrize("words", [["up"], ["run", "quickstart"]], ids=" ".join)
def test_dry_runs_estimate_time_memory_and_disk(words: list[str], home: Path, tmp_path: Path) -> None:
    small = ["--base", str(home.parent / "base"), "--set", "ppo.frozen_blocks=0"]
    told = say(tmp_path, *words, *small, "--dry-run")
    assert all(word in told for word in ("min", "GiB", "ppo")) and not list(tmp_path.iterdir())


def test_ones_own_conversations_are_part_of_the_raising(home: Path, tmp_path: Path) -> None:
    faq = tmp_path / "faq.csv"
    faq.write_text("question,answer\nWhen do you open?,At nine.\n")
    small = ("--base", str(home.parent / "base"), "--set", "ppo.frozen_blocks=0")
    words = ("run", "quickstart", "--dry-run", "--data", str(faq), *small)
    assert "sft" in say(tmp_path, *words)
    recipe = load_recipe("quickstart", files=[str(faq)])
    assert recipe.data.files == [str(faq)] and recipe.run_name != load_recipe("quickstart").run_name
    faq.write_text("question,answer\nWhen do you open?,\n")
    with pytest.raises(DataError, match=r"faq\.csv:2: the fields 'question' tell no kind of row"):
        say(tmp_path, *words)


def test_settings_that_the_base_cannot_have_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ppo.frozen_blocks is 30, but the model has 30 blocks"):
        say(tmp_path, "run", "quickstart", "--dry-run", "--set", "ppo.frozen_blocks=30")


def test_doctor_tells_what_the_machine_can_do(tmp_path: Path) -> None:
    assert "GFLOP/s" in say(tmp_path, "doctor")


def test_a_stage_that_is_refused_leaves_no_run_behind(home: Path) -> None:
    workspace = Workspace(home)
    with (
        workspace.lock("trainer", "this test"),
        pytest.raises(WorkspaceError, match="raising of versions is in use"),
    ):
        say(home, "sft", "--dtype", "float32")
    assert not list(workspace.runs.glob("sft-*"))
    one = home.parent / "one.jsonl"
    one.write_text(TALK)
    with pytest.raises(DataError, match=r"samples are too few|no samples to train on: 1 are kept apart"):
        say(home, "sft", "--dtype", "float32", "--no-starter", "--data", str(one))
    assert not list(workspace.runs.glob("sft-*"))


def test_places_and_names_are_tried_before_long_work(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "results.json"):
        with pytest.raises(WorkspaceError, match=str(place)):
            say(home, "evaluate", "--json", str(place))
        with pytest.raises(WorkspaceError, match=str(place)):
            say(home, "compare", "v2-sft", "v1-base", "--json", str(place))
    with pytest.raises(WorkspaceError, match="there is no database"):
        say(home, "data", "judgments", str(tmp_path / "out"), "--database", str(tmp_path / "fedback.sqlite"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_stage_done_before_says_so(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "versions", tmp_path / "versions")
    talks = tmp_path / "talks.jsonl"
    turns = [[("user", f"Say {n}."), ("assistant", f"{n}.")] for n in range(60)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sft", "--version", "v1-base", "--dtype", "float32", "--no-starter", "--data", str(talks)]
    assert "Published v3-sft" in say(tmp_path, *words)
    assert "This was done before, as v3-sft" in say(tmp_path, *words)
