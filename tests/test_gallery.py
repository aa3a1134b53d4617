"""The gallery of curves: its scenes are commands that there are, and a small one is played for real."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

from nestling.bench.gallery import Gallery, Played, Scene, curves, scenes, write_gallery
from nestling.cli import cli
from nestling.compute.device import Hardware
from nestling.model.hf_folder import save_model
from nestling.workspace import Card, Workspace
from tiny import tiny_model

SHARED, HEALTHY, SICK = scenes()


@pytest.mark.parametrize("scene", [*HEALTHY, *SICK], ids=lambda scene: scene.key)
def test_every_scene_is_a_command_that_there_is(scene: Scene) -> None:
    verb = cli.get_command(click.Context(cli), scene.verb)
    assert verb is not None
    known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
    words = shlex.split(f"{SHARED[scene.verb]} {scene.words}")
    assert {word for word in words if word.startswith("--")} <= known


def test_what_is_sick_has_its_healthy_run_and_says_what_to_do() -> None:
    assert {scene.verb for scene in SICK} == {scene.verb for scene in HEALTHY} == set(SHARED)
    assert all(scene.do and scene.see for scene in SICK) and all(scene.curves for scene in HEALTHY)
    assert len({scene.key for scene in (*HEALTHY, *SICK)}) == len(HEALTHY) + len(SICK)


def test_a_step_that_was_done_again_replaces_its_first_telling() -> None:
    steps = [(1, 3.0), (2, 2.0), (2, 1.5), (3, float("nan"))]
    events = [{"kind": "step", "step": step, "metrics": {"loss": loss}} for step, loss in steps]
    assert curves([*events, {"kind": "report", "text": "done"}]) == {"loss": [(1, 3.0), (2, 1.5)]}


def test_a_small_gallery_is_played_shown_and_not_played_again(tmp_path: Path) -> None:
    workspace, model = Workspace(tmp_path / "nest"), tiny_model()
    card = Card(kind="base", assistant="Pip", parents=[], licence="CC0-1.0")
    start = workspace.versions.publish(lambda folder: save_model(folder, model), card, "v1-base")
    gallery = Gallery(workspace, start, lambda _: None)
    gallery.shared = {"sft": "--no-starter --max-tokens 4000 --validate-every 2 --threads 1 --dtype float32"}
    gallery.healthy = [replace(HEALTHY[0], words="--data {few} --learning-rate 1e-3")]
    gallery.sick = [replace(SICK[0], words="--data {few} --learning-rate 0.9")]
    found = gallery.play_all()
    well, sick = found["sft-healthy"], found["sft-rate"]
    assert well.code == 0 and well.curves["validation_loss"][-1][1] < well.curves["validation_loss"][0][1]
    assert sick.curves["loss"][-1][1] > well.curves["loss"][-1][1]
    assert gallery.play_all() == found  # read, not run
    page = write_gallery(
        tmp_path, Hardware("cpu", "float32", 1), start, gallery, found, "nestling bench gallery"
    )
    text = page.read_text("utf-8")
    assert "--learning-rate 0.9" in text and str(tmp_path) not in text
    for picture in ("gallery-sft-healthy", "gallery-sft-rate"):
        assert f"(pictures/{picture}.svg)" in text
        assert (tmp_path / "pictures" / f"{picture}.svg").read_text("utf-8").startswith("<svg")


def test_what_a_model_said_ends_no_code_in_the_page(tmp_path: Path) -> None:
    workspace, model = Workspace(tmp_path / "nest"), tiny_model()
    card = Card(kind="base", assistant="Pip", parents=[], licence="CC0-1.0")
    start = workspace.versions.publish(lambda folder: save_model(folder, model), card, "v1-base")
    gallery = Gallery(workspace, start, lambda _: None)
    gallery.healthy, gallery.sick = [next(s for s in HEALTHY if s.verb == "ppo")], []
    said = Played("nestling ppo", 0, "done", 1.0, {"kl": [(1, 0.5)]}, [("a `b`\n# c", "<b>`")])
    page = write_gallery(tmp_path, Hardware("cpu", "float32", 1), start, gallery, {"ppo-healthy": said}, "x")
    assert "- `a 'b' # c` `<b>'`" in page.read_text("utf-8")
