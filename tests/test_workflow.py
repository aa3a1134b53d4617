"""Recipes and whole runs: refused mistakes, one raising from end to end, and the same raising killed in every stage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nestling.compute.device import Hardware
from nestling.errors import ConfigError, DataError
from nestling.generation.engine import Engine
from nestling.model.hf_folder import save_model
from nestling.workflow import materials
from nestling.workflow.progress import STAGES, ProgressReader, fold, line
from nestling.workflow.recipe import RankConfig, load_recipe, packaged_recipes
from nestling.workflow.stages import Bench
from nestling.workspace import EventLog, Workspace
from serving_support import LiveServer, wait_until
from tiny import tiny_model


def test_packaged_recipes_load_and_settings_apply() -> None:
    assert "quickstart" in packaged_recipes()
    recipe = load_recipe("quickstart", ["ppo.kl_coef=0.05", "ppo.learning_rate=1e-6", "sft.lora={rank: 8}"])
    assert recipe.ppo.kl_coef == 0.05 and recipe.ppo.learning_rate == 1e-6
    assert recipe.sft.lora is not None and recipe.sft.lora.rank == 8
    assert recipe.run_name != load_recipe("quickstart").run_name


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
        materials.training_items(load_recipe("quickstart"), {"refusal": 2, "list_count": 2})


def test_the_quickstart_rewards_nothing_that_is_held_out_and_stays_in_its_budget() -> None:
    recipe = load_recipe("quickstart")
    assert materials.ranking_items(recipe, recipe.rank.prompts) and materials.ppo_items(recipe)
    assert recipe.sft.max_tokens <= 250_000 and recipe.reward_model.max_tokens <= 250_000
    assert recipe.ppo.iterations <= 60


def test_what_is_demonstrated_ranked_and_rewarded_are_different_prompts_where_there_are_enough() -> None:
    recipe = load_recipe("quickstart")
    ids = lambda items, name: {item.id for item in items if item.behaviour == name}
    ranked, rewarded = materials.ranking_items(recipe, recipe.rank.prompts), materials.ppo_items(recipe)
    for name in ("refusal", "harmless", "everyday", "premise_false", "premise_true", "memory", "format"):
        shown = materials.training_items(recipe, {name: recipe.data.demonstrations[name]})
        assert not ids(shown, name) & ids(ranked, name) and not ids(ranked, name) & ids(rewarded, name), name
        assert not ids(shown, name) & ids(rewarded, name), name


def test_what_was_chosen_by_measurement_stays_chosen(tmp_path: Path) -> None:
    workspace, other = Workspace(tmp_path), Hardware("cpu", "float32", 1, 1)
    first = Bench.open(workspace, "mine", lambda: Hardware("cpu", "bfloat16", 2, 2))
    assert Bench.open(workspace, "mine", lambda: other).hardware == first.hardware
    assert Bench.open(workspace, "another", lambda: other).hardware == other


def test_a_base_on_this_machine_is_known_by_its_content(tmp_path: Path) -> None:
    names = []
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / folder).mkdir()
        save_model(tmp_path / folder, tiny_model(seed))
        names.append(load_recipe("quickstart", [f"base={tmp_path / folder}"]).run_name)
    assert names[0] == names[1] != names[2]


def test_rankings_hold_four_different_answers_half_of_them_sampled(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    items = materials.ranking_items(recipe, {"format": 6, "refusal": 6})
    engine = Engine(tiny_model(context_length=2048))
    drawn = RankConfig(max_new_tokens=6, temperature=1.0)
    rows = materials.rank_answers(engine, items, drawn, tmp_path / "a", lambda done, total: None)
    assert len(rows) == len(items)
    for row in rows:
        answers = list(zip(row["completions"], row["finished"], strict=True))
        assert len(set(answers)) == len(answers) >= 4
        assert 2 * row["sources"].count("sft") >= len(answers)
        assert all(row["utilities"][a] > row["utilities"][b] for a, b in better(row["ranks"]))
    # Cold sampling says the same thing every time: no further draw helps, and no ranking is made up.
    cold = RankConfig(max_new_tokens=6, temperature=1e-3)
    assert materials.rank_answers(engine, items, cold, tmp_path / "b", lambda done, total: None) == []


def better(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of answers of which the first has the better rank."""
    return [(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]]


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


SETTINGS = {
    "hardware": {"dtype": "bfloat16", "threads": 2},
    "checkpoint_seconds": 0,
    "data": {"demonstrations": {"refusal": 60, "identity": 40, "format": 60}, "replay": 70, "replay_max_tokens": 8},
    "sft": {"max_tokens": 30000, "batch_tokens": 2048, "validate_every": 3},
    "rank": {"prompts": {"format": 70, "refusal": 30}, "samples": 2, "written": 2, "max_new_tokens": 8},
    "reward_model": {"max_tokens": 20000, "batch_tokens": 3072, "validate_every": 2},
    "ppo": {"iterations": 4, "prompts": 8, "critic_warmup": 1, "max_new_tokens": 8, "transcript_every": 1,
            "demonstration_coef": 0.3, "demonstration_tokens": 128},
    "ppo_prompts": {"format": 20, "refusal": 20},
    "evaluation": {
        "max_new_tokens": 4,
        "sizes": dict.fromkeys(
            ["refusal", "harmless", "everyday", "premise_false", "premise_true", "mistake", "hold_truth", "memory",
             "identity", "chinese", "small_talk", "ends", "format", "facts", "arithmetic", "list_count", "starts_with",
             "letter_case", "either_or", "yes_no", "verse", "retention"], 4),
    },
}  # fmt: skip


def start(workspace: Path, recipe: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nestling", "run", str(recipe), "-w", str(workspace), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    base = folder / "base"
    base.mkdir()
    save_model(base, tiny_model(context_length=2048))
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({"name": "tiny", "base": str(base), **SETTINGS}))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the recipe ran undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, recipe)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output.decode()
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on whether it was killed."""
    workspace = Workspace(folder)
    [run] = workspace.runs.glob("tiny-*")
    left: dict[str, Any] = {}
    for version in workspace.versions.list():
        left[version.name] = (version.folder / "model.safetensors").read_bytes()
        left[version.name + " card"] = version.card.model_dump(exclude={"created"})
    for path in sorted(
        [*run.glob("evaluation/*.json"), *run.glob("rank/*.jsonl"), *run.glob("ppo/transcripts/*")]
    ):
        left[str(path.relative_to(run))] = path.read_bytes()
    pointer = workspace.versions.pointer()
    return left | {"serving": pointer.version if pointer else None}


@pytest.mark.slow
def test_a_run_goes_from_base_to_verdict(whole: Path) -> None:
    workspace = Workspace(whole)
    names = [version.name for version in workspace.versions.list()]
    assert names == ["v1-base", "v2-sft", "v3-reward-model", "v4-ppo"]
    cards = {version.card.kind: version.card for version in workspace.versions.list()}
    assert cards["sft"].state in ("accepted", "rejected") and cards["ppo"].verdict
    assert cards["ppo"].parents == ["v2-sft", "v3-reward-model"]
    assert cards["reward_model"].metrics["reward_model"]["all"]["pairs"] > 0
    [run] = workspace.runs.glob("tiny-*")
    assert (run / "report.html").read_text().startswith("<!")
    report = (run / "report.md").read_text()
    assert (
        "## v2-sft against v1-base" in report and "## v4-ppo against v2-sft" in report
    )  # gains of the newer one
    costs = [line for line in report.splitlines() if line.startswith(("| sft |", "| ppo |", "| gate-base |"))]
    assert len(costs) == 3 and all(line.endswith("|") and "- |" not in line for line in costs), costs
    assert not list(run.glob("*/checkpoint-*"))  # 1.6 GB each at full size
    state = ProgressReader(workspace)()
    assert state is not None and state["state"] == "finished"


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(whole: Path, recipe: Path) -> None:
    [run] = Workspace(whole).runs.glob("tiny-*")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process = start(whole, recipe)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output.decode()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_cards_hold_what_the_gate_measured(whole: Path) -> None:
    for name in ("v2-sft", "v4-ppo"):
        measured = Workspace(whole).versions.get(name).card.metrics["gate"]
        assert "refusal" in measured and all(0 <= rate <= 1 for rate in measured.values())


def folded(*events: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"stages": list(STAGES)}
    for event in events:
        state = fold(state, event)
    return state


def progress(stage: str, step: int, total: int, time: float) -> dict[str, Any]:
    return {"kind": "progress", "stage": stage, "step": step, "total": total, "time": time}


def started(stage: str, time: float, **more: Any) -> dict[str, Any]:
    return {"kind": "stage_started", "stage": stage, "time": time, **more}


def test_progress_tells_stage_step_and_time_to_go() -> None:
    run = {"kind": "run_started", "recipe": "mine", "stages": ["sft", "gate-sft"], "pid": 1}
    state = folded(run, started("gate-sft", 100.0), progress("gate-sft", 30, 90, 160.0))
    assert state["eta_seconds"] == 120
    assert line(state) == "[2/2] measuring the fine-tuned version  30/90  about 2 min 00 s to go"


def test_what_was_kept_from_before_a_stop_does_not_count_as_fast() -> None:
    kept = [progress("gate-base", step, 3072, time) for step, time in ((1024, 0.5), (2048, 1.0))]
    state = folded(started("gate-base", 0.0), *kept, progress("gate-base", 2304, 3072, 101.0))
    assert state["eta_seconds"] == 300


def test_a_part_of_a_stage_keeps_the_stages_number() -> None:
    events = [started("sft", 0.0), progress("replay", 32, 96, 10.0), progress("replay", 64, 96, 20.0)]
    assert line(folded(*events)) == "[2/9] collecting the base's own good answers  64/96  about 10 s to go"
    assert line(folded(*events, started("sft", 30.0, total=9))) == "[2/9] fine-tuning  0/9"


def test_a_raising_that_was_killed_is_told_as_stopped(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    log = EventLog(workspace.run_folder("mine-1") / "events.jsonl")
    reader = ProgressReader(workspace)
    log.append("published", stage="base", version="v1-base")
    assert reader() is None  # nothing is being raised
    log.append("run_started", recipe="mine", stages=["sft"], pid=os.getpid())
    log.append("step", stage="sft", step=1, total=9, seconds_left=5.0, metrics={})
    assert reader() == reader() and reader()["state"] == "running"  # type: ignore[index]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    log.append("run_started", recipe="mine", stages=["sft"], pid=ended.pid)
    state = reader()
    assert state is not None and state["state"] == "stopped"


@pytest.mark.slow
def test_another_assistant_is_judged_against_its_own_base(whole: Path, recipe: Path, tmp_path: Path) -> None:
    """What is served already answers to another name, and was asked other questions."""
    shutil.copytree(whole, tmp_path / "nest")
    workspace = Workspace(tmp_path / "nest")
    workspace.versions.promote("v2-sft", "for this test", force=True)
    command = [
        sys.executable,
        "-m",
        "nestling",
        "run",
        str(recipe),
        "-w",
        str(workspace.root),
        "--name",
        "Robin",
    ]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = [run for run in workspace.runs.glob("tiny-*") if not (Path(whole) / "runs" / run.name).exists()]
    verdicts = [e for e in EventLog(run / "events.jsonl").read()[0] if e["kind"] == "verdict"]
    assert next(v["incumbent"] for v in verdicts) == "v5-base"
    assert {v.card.assistant for v in workspace.versions.list()[4:]} == {"Robin"}


@pytest.mark.slow
def test_one_verb_at_a_time_ends_with_the_same_weights(whole: Path, recipe: Path, tmp_path: Path) -> None:
    def nestling(*words: str) -> str:
        command = [
            sys.executable,
            "-m",
            "nestling",
            *words,
            "-w",
            str(tmp_path),
            "--dtype",
            "bfloat16",
            "--threads",
            "2",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(done.stderr)
        return done.stdout

    told: list[str] = []
    nestling("fetch", json.loads(recipe.read_text())["base"])
    from_recipe = ["--recipe", str(recipe)]
    nestling("sft", *from_recipe)
    assert "fine-tuning" in told[-1]  # long work says how far it is
    tuned = ["--version", "v2-sft", *from_recipe]
    rankings = nestling("rank", *tuned).partition(": ")[2].replace("\n", "")
    said = nestling("reward-model", *tuned, "--data", rankings)
    assert "Pair accuracy on" in said
    said = nestling("ppo", *tuned, "--reward-model", "v3-reward-model", "--iterations", "4")
    assert "Published v4-ppo" in said
    mine, theirs = Workspace(tmp_path).versions, Workspace(whole).versions
    for name in ("v1-base", "v2-sft", "v3-reward-model", "v4-ppo"):
        weights = [store.get(name).folder / "model.safetensors" for store in (mine, theirs)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bits(whole: Path, recipe: Path, tmp_path: Path) -> None:
    reached = []
    for stage in ("replay", "sft", "gate-base", "rank", "reward_model", "ppo", "gate-ppo"):
        process = start(tmp_path, recipe)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            logs = list(tmp_path.glob("runs/tiny-*/events.jsonl"))
            events = EventLog(logs[0]).read()[0] if logs else []
            begun = max((i for i, e in enumerate(events) if e["kind"] == "run_started"), default=0)
            if any(e.get("stage") == stage and e["kind"] in ("step", "progress") for e in events[begun:]):
                os.kill(process.pid, signal.SIGKILL)
                reached.append(stage)
                break
            time.sleep(0.01)
        process.communicate(timeout=60)
    process = start(tmp_path, recipe)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output.decode()
    assert len(reached) >= 5, reached  # a stage can be over before the kill arrives
    mine, theirs = outcome(tmp_path), outcome(whole)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert mine[name] == theirs[name], name


@contextlib.contextmanager
def up(workspace: Path, recipe: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "nestling", "up", "--recipe", str(recipe), "-w", str(workspace)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_up_killed_and_started_again_serves_and_ends_with_the_same_bits(
    whole: Path, recipe: Path, tmp_path: Path
) -> None:
    live = LiveServer(Workspace(tmp_path), f"http://127.0.0.1:{free_port()}")
    port = int(live.url.rpartition(":")[2])

    def served() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return live.status()["serving"] is not None
        return False

    with up(tmp_path, recipe, port) as process:
        wait_until(served)
        wait_until(lambda: bool(list(tmp_path.glob("runs/tiny-*/sft/checkpoint-*"))))
        children = psutil.Process(process.pid).children()
        assert len(children) == 2, children
        process.kill()
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]  # neither outlives what started it

    with up(tmp_path, recipe, port) as process:
        wait_until(lambda: "The raising is finished" in process.stdout.readline(), 200)  # type: ignore[union-attr]
        assert served()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    mine, theirs = outcome(tmp_path), outcome(whole)
    assert mine.keys() == theirs.keys()
    assert not [name for name in theirs if mine[name] != theirs[name]]


def test_up_refuses_a_port_in_use_before_it_fetches_anything(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "nestling", "up", "-w", str(tmp_path), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert not list(tmp_path.glob("versions/*")) and not list(tmp_path.glob("cache/*"))
