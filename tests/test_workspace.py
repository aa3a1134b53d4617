"""Folders, locks, events and versions: nothing half-written, nothing lost to a kill, readable errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import WorkspaceError
from nestling.workspace import Card, EventLog, Lock, VersionStore, Workspace, atomic, counting


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return Workspace(tmp_path / "nest").versions


class TestAtomic:
    def test_replaces_and_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b.json"
        atomic.write_json(path, {"n": 1})
        atomic.write_json(path, {"n": 2, "text": "é 中"})
        assert json.loads(path.read_text()) == {"n": 2, "text": "é 中"}
        assert [p.name for p in path.parent.iterdir()] == ["b.json"]

    def test_a_reader_never_sees_half_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "pointer"
        code = (
            "import sys, itertools, pathlib; from nestling.workspace import atomic\n"
            "for n in itertools.count(): atomic.write_text(pathlib.Path(sys.argv[1]), str(n % 10) * 4000)"
        )
        writer = start_python(code, str(path))
        try:
            while not path.exists():
                time.sleep(0.01)
            seen = set()
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                text = path.read_text()
                assert len(text) == 4000 and len(set(text)) == 1
                seen.add(text[0])
            assert len(seen) > 1
        finally:
            writer.kill()
            writer.wait()

    def test_a_failed_folder_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), atomic.new_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise KeyError("stop")
        assert list(tmp_path.iterdir()) == []

    def test_a_finished_folder_is_never_replaced(self, tmp_path: Path) -> None:
        with atomic.new_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("one")
        with (
            pytest.raises(WorkspaceError, match="exists already"),
            atomic.new_folder(tmp_path / "model") as folder,
        ):
            (folder / "weights").write_text("two")
        assert (tmp_path / "model" / "weights").read_text() == "one"

    def test_what_a_kill_leaves_is_cleared(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, pathlib, signal; from nestling.workspace import atomic\n"
            "with atomic.new_folder(pathlib.Path(sys.argv[1]) / 'model') as folder:\n"
            "    (folder / 'weights').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert start_python(code, str(tmp_path)).wait() == -signal.SIGKILL
        assert not (tmp_path / "model").exists() and len(list(tmp_path.iterdir())) == 1
        atomic.remove_partials(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_disk_errors_are_plain_sentences(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"):
            atomic.write_text(tmp_path / "file" / "x", "y")
        with (
            pytest.raises(WorkspaceError, match=r"disk is full.*Free some space") as caught,
            atomic.readable_errors(tmp_path / "x"),
            open("/dev/full", "wb", buffering=0) as full,  # the system's own full disk
        ):
            full.write(b"x")
        assert str(tmp_path / "x") in str(caught.value)

    def test_weights_that_find_no_room_leave_nothing_and_say_why(self, tmp_path: Path) -> None:
        """Weights are written by another library, which has its own way of saying that a disk is full."""
        code = (
            "import pathlib, resource, sys, torch\n"
            "from safetensors.torch import save_file\n"
            "from nestling.workspace import atomic\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "place = pathlib.Path(sys.argv[1])\n"
            "with atomic.new_folder(place) as folder:\n"
            "    save_file({'w': torch.zeros(1_000_000)}, folder / 'model.safetensors')\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "v1")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert "WorkspaceError" in done.stderr and "files may not grow so large" in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestLock:
    def test_names_the_holder_and_frees_on_kill(self, tmp_path: Path) -> None:
        code = (
            "import sys, time, pathlib; from nestling.workspace import Lock\n"
            "with Lock(pathlib.Path(sys.argv[1]), 'the run'): print('held', flush=True); time.sleep(60)"
        )
        path = tmp_path / "locks" / "run.lock"
        holder = start_python(code, str(path))
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            for _ in range(2):  # asking must not damage what the holder wrote
                with pytest.raises(WorkspaceError, match=f"the run is in use by process {holder.pid}.*kill"):
                    Lock(path, "the run").acquire()
        finally:
            holder.kill()
            holder.wait()
        with Lock(path, "the run") as lock:
            assert lock.holder() == os.getpid()
        assert lock.holder() is None


class TestEvents:
    @given(st.binary(max_size=40).filter(lambda torn: b"\n" not in torn))
    def test_a_torn_last_line_is_ignored_then_cut(
        self, tmp_path_factory: pytest.TempPathFactory, torn: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("run") / "events.jsonl"
        log = EventLog(path)
        log.append("step", step=1)
        log.close()
        with path.open("ab") as file:
            file.write(torn)
        events, offset = EventLog(path).read()
        assert [event["step"] for event in events] == [1]
        EventLog(path).append("step", step=2)
        later, end = EventLog(path).read(offset)
        assert [event["step"] for event in later] == [2] and end == path.stat().st_size

    def test_fields_survive_and_nan_becomes_null(self, tmp_path: Path) -> None:
        log = EventLog(tmp_path / "events.jsonl")
        assert log.read() == ([], 0)
        log.append("step", loss=float("nan"), nested={"kl": [0.5, float("inf")]}, text="a\nb\u2028中")
        (event,), _ = log.read()
        assert event["kind"] == "step" and abs(event["time"] - time.time()) < 60
        assert (event["loss"], event["nested"], event["text"]) == (None, {"kl": [0.5, None]}, "a\nb\u2028中")


class TestVersions:
    def test_publish_numbers_and_lists(self, store: VersionStore) -> None:
        base = store.publish(write_model, Card(kind="base", assistant="Mira"))
        sft = store.publish(write_model, Card(kind="sft", parents=[base.name], data={"x.jsonl": "ab"}))
        store.publish(write_model, Card(kind="reward_model"))
        store.publish(write_model, Card(kind="ppo"), name="v10-ppo")
        names = [version.name for version in store.list()]
        assert names == ["v1-base", "v2-sft", "v3-reward-model", "v10-ppo"]
        assert store.next_name("sft") == "v11-sft"
        assert store.get("v1-base").card.assistant == "Mira"
        assert sft.folder.joinpath("config.json").exists() and sft.card.parents == ["v1-base"]

    def test_a_failed_publish_leaves_no_version(self, store: VersionStore) -> None:
        def fail(folder: Path) -> None:
            write_model(folder)
            raise WorkspaceError("no")

        with pytest.raises(WorkspaceError):
            store.publish(fail, Card(kind="base"))
        assert store.list() == [] and not store.exists("v1-base")

    @pytest.mark.parametrize(
        "name", ["", "..", "a/b", "/etc", "A", "a b", ".x", "é", "a\n", "x" * 65, "nestling"]
    )
    def test_a_name_is_never_a_path(self, store: VersionStore, name: str) -> None:
        with pytest.raises(WorkspaceError, match="cannot be used as a name"):
            store.get(name)

    def test_promote_and_roll_back(self, store: VersionStore) -> None:
        assert store.serving() is None
        for kind in ("base", "sft", "ppo"):
            store.publish(write_model, Card(kind=kind))
        store.promote("v1-base", "first")
        store.mark("v2-sft", "accepted", "better on 3 of 4", wins=3)
        store.promote("v2-sft", "the gate")
        store.promote("v2-sft", "again")  # changes nothing
        pointer = store.pointer()
        assert pointer is not None and pointer.reason == "the gate"
        assert [turn.version for turn in pointer.history] == ["v1-base"]
        assert store.get("v2-sft").card.metrics == {"wins": 3}
        assert store.roll_back("worse after all").name == "v1-base"
        with pytest.raises(WorkspaceError, match="no earlier version"):
            store.roll_back()
        pointer = store.pointer()
        assert pointer is not None and pointer.reason == "worse after all"
        assert [turn.reason for turn in pointer.history] == ["first", "the gate"], "every reason is kept"
        store.promote("v3-ppo", "by hand")
        assert store.roll_back().name == "v1-base"

    def test_damaged_cards_are_passed_by(self, store: VersionStore) -> None:
        for kind in ("base", "sft", "ppo"):
            store.promote(store.publish(write_model, Card(kind=kind)).name, "better")
        (store.get("v2-sft").folder / "card.json").write_text("{")
        assert [version.name for version in store.list()] == ["v1-base", "v3-ppo"]
        assert store.names() == ["v1-base", "v2-sft", "v3-ppo"]
        assert store.roll_back().name == "v1-base", "what cannot be served is not rolled back to"
        (store.folder / "v2-sft" / "card.json").unlink()
        (store.folder / "v2-sft" / "card.json").mkdir()
        with pytest.raises(
            WorkspaceError, match=r"v2-sft/card\.json: the card cannot be read: Is a directory"
        ):
            store.get("v2-sft")

    def test_removing_deletes_weights_and_keeps_the_line(self, store: VersionStore) -> None:
        store.publish(write_model, Card(kind="base"))
        store.publish(write_model, Card(kind="sft", parents=["v1-base"]))
        store.publish(write_model, Card(kind="ppo", parents=["v2-sft"]))
        for name in ("v2-sft", "v3-ppo"):
            store.promote(name, "better")
        with pytest.raises(WorkspaceError, match="'v3-ppo' is being served"):
            store.remove("v3-ppo")
        with pytest.raises(
            WorkspaceError, match="'v1-base' is the base that v2-sft, v3-ppo are measured against"
        ):
            store.remove("v1-base")
        gone = store.remove("v2-sft")
        assert [path.name for path in gone.folder.iterdir()] == ["card.json"] and gone.card.removed
        assert store.root(store.get("v3-ppo")).name == "v1-base"
        assert store.next_name("sft") == "v4-sft", "its number is not given again"
        with pytest.raises(WorkspaceError, match="weights of version 'v2-sft' were removed on 20"):
            store.promote("v2-sft", "again")
        with pytest.raises(WorkspaceError, match="no earlier version"):
            store.roll_back()
        assert store.remove("v2-sft").card == gone.card, "twice is the same"

    def test_a_verdict_is_carried_out_once_and_survives_a_kill(self, store: VersionStore) -> None:
        for kind in ("base", "sft", "ppo"):
            store.publish(write_model, Card(kind=kind))
        store.promote("v1-base", "first")
        store.promote("v2-sft", "better")  # killed here, before the card was written
        assert store.settle("v2-sft", True, "better").card.state == "accepted"
        assert store.settle("v3-ppo", False, "worse").card.state == "rejected"
        serving = store.serving()
        assert serving is not None and serving.name == "v2-sft"
        store.roll_back()
        store.settle("v2-sft", True, "better")  # said before: the people's choice stays
        serving = store.serving()
        assert serving is not None and serving.name == "v1-base"

    def test_rejected_and_missing_are_refused_by_name(self, store: VersionStore) -> None:
        store.publish(write_model, Card(kind="ppo"))
        store.mark("v1-ppo", "rejected", "lost 8 points on memory")
        with pytest.raises(WorkspaceError, match="'v1-ppo' was rejected: lost 8 points on memory"):
            store.promote("v1-ppo", "no")
        with pytest.raises(WorkspaceError, match=r"no version 'v7-ppo'.*v1-ppo"):
            store.promote("v7-ppo", "no", force=True)
        assert store.serving() is None
        store.promote("v1-ppo", "I know better", force=True)
        serving = store.serving()
        assert serving is not None and serving.name == "v1-ppo"

    def test_a_reward_model_is_not_served(self, store: VersionStore) -> None:
        store.publish(write_model, Card(kind="reward_model"))
        with pytest.raises(WorkspaceError, match="'v1-reward-model' is a reward model"):
            store.promote("v1-reward-model", "no", force=True)
        assert store.serving() is None

    def test_damage_is_named(self, store: VersionStore) -> None:
        version = store.publish(write_model, Card(kind="base"))
        store.promote(version.name, "first")
        store.pointer_path.write_text("{")
        with pytest.raises(WorkspaceError, match=r"serving.json.*Delete the file"):
            store.serving()
        (version.folder / "card.json").write_text('{"kind": 3}')
        with pytest.raises(WorkspaceError, match=r"card.json.*cannot be read"):
            store.get(version.name)

    def test_unknown_card_fields_survive(self, store: VersionStore) -> None:
        version = store.publish(write_model, Card(kind="base"))
        path = version.folder / "card.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": [1]}))
        store.mark(version.name, "accepted")
        assert json.loads(path.read_text())["from_the_future"] == [1]


def test_workspace_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NESTLING_HOME", str(tmp_path / "home"))
    assert Workspace().root == tmp_path / "home"
    monkeypatch.delenv("NESTLING_HOME")
    monkeypatch.chdir(tmp_path)
    workspace = Workspace()
    assert workspace.root == tmp_path / "nest" and not workspace.root.exists()
    assert workspace.run_folder("quickstart") == tmp_path / "nest" / "runs" / "quickstart"
    with pytest.raises(WorkspaceError):
        workspace.run_folder("../etc")


def test_counting_tells_every_32nd_thing_from_any_thread() -> None:
    seen: list[tuple[int, int]] = []
    count = counting(lambda done, total: seen.append((done, total)), 10, 200, parts=3)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(190 * 3):
            pool.submit(count)
    assert seen == [(number, 200) for number in range(32, 200, 32)]
