"""The built wheel holds everything: code, recipes, page, templates, migrations, curriculum, labels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import sys
from pathlib import Path
import nestling
assert Path(nestling.__file__).is_relative_to(sys.argv[1]), nestling.__file__
from nestling.evaluation.detectors import measure_detectors
from nestling.evaluation.perplexity import load_passages
from nestling.serving.app import create_app
from nestling.storage import open_database
from nestling.workflow.materials import replay_prompts
from nestling.workflow.recipe import load_recipe, packaged_recipes
assert load_recipe("quickstart").ppo.iterations and "quickstart" in packaged_recipes()
assert replay_prompts() and load_passages("gate") and measure_detectors()["refusal"].n
open_database(Path(sys.argv[1]) / "feedback.sqlite").close()
"""


@pytest.mark.slow
def test_the_wheel_works_where_the_sources_are_not(tmp_path: Path) -> None:
    def python(*words: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=240, cwd=tmp_path,
            env=os.environ | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "source"  # a build leaves files behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    python("-m", "pip", "--quiet", *wheel)
    [built] = tmp_path.glob("nestling-*.whl")
    site = tmp_path / "site"
    python("-m", "pip", "--quiet", "install", "--no-deps", "--no-index", "--target", str(site), str(built))
    python("-c", CODE, str(site), PYTHONPATH=str(site))
    assert "refusal" in python("-m", "nestling", "data", "starter", PYTHONPATH=str(site))
    files = lambda folder: {
        path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file() and path.suffix != ".pyc"
    }
    assert files(source / "src" / "nestling") == files(site / "nestling")
