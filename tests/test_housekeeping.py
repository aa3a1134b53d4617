"""What a workspace takes is told, what can be made again goes when asked, and the folder may be moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nestling.cli import cli
from nestling.errors import WorkspaceError
from nestling.model.hf_folder import save_model
from nestling.storage import open_database
from nestling.workspace import Card, Workspace
from nestling.workspace.housekeeping import clean, parts
from tiny import tiny_model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "nest")
    workspace.versions.publish(lambda folder: save_model(folder, tiny_model()), Card(kind="base"))
    workspace.versions.promote("v1-base", "first")
    open_database(workspace.database_path).close()
    for place, size in (
        ("cache/answers/ab", 3000),
        ("cache/bases/b", 500),
        ("runs/quickstart-0", 7),
        ("snapshots/ab", 9),
    ):
        (workspace.root / place).mkdir(parents=True)
        (workspace.root / place / "file").write_bytes(b"x" * size)
    (workspace.versions.folder / ".v2-sft.x.partial").mkdir()
    return workspace


def test_everything_that_lies_there_is_told(workspace: Workspace) -> None:
    told = {
        part.path.relative_to(workspace.root).as_posix(): (part.kind, part.bytes) for part in parts(workspace)
    }
    assert told["cache/answers"] == ("answers", 3000) and told["cache/bases"] == ("bases", 500)
    assert told["runs/quickstart-0"] == ("run", 7) and told["versions/.v2-sft.x.partial"] == ("left over", 0)
    assert told["snapshots/ab"] == ("snapshot", 9)
    files = [path for path in workspace.root.rglob("*") if path.is_file()]
    others = sum(
        path.stat().st_size for path in files if path.name == "serving.json" or path.parent.name == "locks"
    )
    assert sum(size for _, size in told.values()) == sum(path.stat().st_size for path in files) - others


def test_cleaning_takes_only_what_is_made_again(workspace: Workspace) -> None:
    before = {part.path for part in parts(workspace)}
    gone = {part.path.name for part in clean(workspace)}
    assert gone == {"answers", ".v2-sft.x.partial"}
    assert {part.path.name for part in clean(workspace, bases=True)} == {"bases"}
    assert {part.path for part in parts(workspace)} == {
        path for path in before if path.name not in gone | {"bases"}
    }


def test_nothing_goes_while_something_runs(workspace: Workspace) -> None:
    with (
        workspace.lock("trainer", "this test"),
        pytest.raises(WorkspaceError, match="the raising of versions is in use"),
    ):
        clean(workspace)
    assert (workspace.cache / "answers").exists()


def test_a_moved_workspace_is_the_same(workspace: Workspace, tmp_path: Path) -> None:
    said = lambda root, *words: CliRunner(env={"NESTLING_HOME": str(root), "COLUMNS": "200"}).invoke(
        cli, words, catch_exceptions=False
    ).output  # fmt: skip
    before = said(workspace.root, "versions", "list")
    moved = workspace.root.rename(tmp_path / "elsewhere")
    assert said(moved, "versions", "list") == before and "v1-base" in before
    assert "v1-base" in said(moved, "workspace", "show")
    assert "removed" in said(moved, "workspace", "clean")
    assert "(v1-base)" in said(moved, "chat", "--max-tokens", "2")
    assert not workspace.root.exists()


def test_removed_weights_are_refused_by_name(workspace: Workspace) -> None:
    workspace.versions.publish(lambda folder: None, Card(kind="reward_model", parents=["v1-base"]))
    runner = CliRunner(env={"NESTLING_HOME": str(workspace.root), "COLUMNS": "200"})
    assert "its card stays" in runner.invoke(cli, ["versions", "remove", "v2-reward-model"]).output
    assert "removed" in runner.invoke(cli, ["versions", "list"]).output
    assert "reward_model" in runner.invoke(cli, ["versions", "show", "v2-reward-model"]).output
    with pytest.raises(WorkspaceError, match="weights of version 'v2-reward-model' were removed"):
        runner.invoke(cli, ["ppo", "--reward-model", "v2-reward-model"], catch_exceptions=False)
