"""Whole runs: one raising from end to end, and the same raising killed within every phase."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nestling.compute.device import Hardware, faster_dtype
from nestling.compute.process import MALLOC_TUNABLES
from nestling.generation.engine import Engine
from nestling.model.hf_folder import save_model
from nestling.workflow import materials
from nestling.workflow.progress import ProgressReader
from nestling.workflow.recipe import DataConfig, RankConfig, load_recipe
from nestling.workflow.stages import Bench
from nestling.workspace import EventLog, Workspace
from serving_support import LiveServer, wait_until
from tiny import tiny_model


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


SETTINGS = {
    # bf16 takes twice as long where nothing computes in it; how many workers were chosen would depend on neighbours
    "hardware": {"dtype": faster_dtype("cpu"), "threads": 2, "workers": 2},
    "checkpoint_seconds": 0,
    "data": {"demonstrations": {"refusal": 60, "identity": 40, "format": 60}, "replay": 70, "replay_max_tokens": 8},
    "sft": {"max_tokens": 14000, "batch_tokens": 2048, "validate_every": 3},
    "rank": {"prompts": {"format": 70, "refusal": 30}, "samples": 2, "written": 2, "max_new_tokens": 8},
    "reward_model": {"max_tokens": 10000, "batch_tokens": 2048, "validate_every": 2},
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
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def write_recipe(folder: Path) -> Path:
    """A recipe of seconds, and a base for it."""
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
    assert "## Reward model" in report and "<h2>Reward model</h2>" in (run / "report.html").read_text()
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
        command = [sys.executable, "-m", "nestling", *words, "-w", str(tmp_path)]
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


ANSWERING = "nestling.generation.sampler:next_tokens"
UPDATING = "nestling.training.optimizer:MasterAdamW.step"
SAVING = "nestling.workspace.atomic:_finish_tree"  # all is written, and not yet under its name
SCORING = "nestling.training.ppo.stage:token_rewards"
KILLS = [
    ("sft", ANSWERING, 10),  # the base's own answers, for replay
    ("sft", UPDATING, 2),
    ("sft", SAVING, 1),
    ("gate-base", ANSWERING, 10),
    ("gate-sft", ANSWERING, 10),
    ("rank", ANSWERING, 10),
    ("reward_model", UPDATING, 2),
    ("reward_model", SAVING, 1),
    ("ppo", ANSWERING, 20),
    ("ppo", SCORING, 3),
    ("ppo", UPDATING, 2),
    ("ppo", SAVING, 2),
    ("gate-ppo", ANSWERING, 10),
]


@pytest.mark.slow
def test_killed_within_every_phase_it_ends_with_the_same_bits(
    whole: Path, recipe: Path, tmp_path: Path
) -> None:
    killer = str(Path(__file__).with_name("killer.py"))
    tuned = os.environ | {"GLIBC_TUNABLES": MALLOC_TUNABLES}  # else the command starts itself again, unharmed
    for stage, place, call in KILLS:
        command = [sys.executable, killer, stage, place, str(call)]
        command += ["run", str(recipe), "-w", str(tmp_path), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=tuned)
        assert done.returncode == -signal.SIGKILL, (stage, place, done.stdout + done.stderr)
    process = start(tmp_path, recipe)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output.decode()
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


def test_two_files_of_one_name_are_both_on_the_card(tmp_path: Path) -> None:
    files = [tmp_path / folder / "faq.jsonl" for folder in ("ours", "theirs")]
    for file in files:
        file.parent.mkdir()
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": file.parent.name}]
        file.write_text(json.dumps({"messages": turns}) + "\n")
    data = DataConfig(files=[str(file) for file in files], demonstrations={}, replay=0)
    hashes = materials.sft_material(data, 0, "Nestling", tiny_model().tokenizer, []).hashes
    assert {"faq.jsonl", "faq.jsonl (2)"} <= hashes.keys()
    assert hashes["faq.jsonl"] != hashes["faq.jsonl (2)"]
