"""Runs a tutorial as it is written, every command of every page, and keeps what came out: ``make tutorial``, and
``make tutorial-votes`` for the one in ``docs/tutorial/votes``.

The commands run in one shell that stops at the first failure, in a new folder with the tutorial's data and an empty
workspace. What was printed goes to ``docs/results``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nestling.bench.report import machine
from nestling.compute.device import detect
from nestling.workspace import atomic

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = 12  # last lines of what a block printed


@dataclass(frozen=True)
class Block:
    """Commands that stand together in a page."""

    page: str
    commands: str


def blocks(folder: Path) -> list[Block]:
    """All of them, in the order of the pages."""
    pages = sorted(folder.glob("[0-9]*.md"))
    return [Block(page.name, found) for page in pages for found in BLOCK.findall(page.read_text("utf-8"))]


def run(chosen: list[Block], data: Path) -> list[tuple[Block, float, str]]:
    """Every block with the seconds it took and what it printed; ends the program where one fails."""
    with tempfile.TemporaryDirectory(prefix="tutorial-") as place:
        for file in data.glob("*.jsonl"):
            shutil.copy(file, place)
        environment = os.environ | {
            "NESTLING_HOME": str(Path(place) / "nest"), "COLUMNS": "120",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        shell = subprocess.Popen(
            ["bash"], cwd=place, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        assert shell.stdin and shell.stdout
        done = []
        shell.stdin.write("set -e\n")
        for number, block in enumerate(chosen):
            mark, start, said = f"--- block {number} is done ---", time.monotonic(), ""
            print(f"{block.page}: {block.commands.strip().splitlines()[0]}", flush=True)
            shell.stdin.write(f"{block.commands}\necho '{mark}'\n")
            shell.stdin.flush()
            for line in shell.stdout:
                if line.rstrip().endswith(mark):
                    said += line.rstrip().removesuffix(mark)  # what was printed last may lack its new line
                    break
                said += line
            else:
                sys.exit(f"{block.page} failed:\n{block.commands}\n{said}")
            done.append((block, time.monotonic() - start, said))
        shell.stdin.close()
        shell.wait()
        return done


def page_of(done: list[tuple[Block, float, str]], hardware_line: str, name: str) -> str:
    """What is kept of it, as Markdown."""
    total = sum(seconds for _, seconds, _ in done)
    lines = [
        "# The tutorial, run as it is written", "",
        f"{hardware_line}. Command: `make {name.replace('/', '-')}`. {total / 60:.0f} minutes in all.", "",
    ]  # fmt: skip
    page = ""
    for block, seconds, said in done:
        if block.page != page:
            page = block.page
            lines += [f"## [{page}](../{name}/{page})", ""]
        shown = [line.rstrip().replace("~~~", "~ ~ ~") for line in said.splitlines() if line.strip()][-SHOWN:]
        lines += [
            f"{seconds:.0f} s:",
            "",
            "~~~text",
            *(f"$ {c}" for c in block.commands.strip().splitlines()),
            *shown,
            "~~~",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "tutorial"
    folder = ROOT / "docs" / name
    chosen = blocks(folder)
    if not chosen:
        sys.exit(f"{folder} has no commands.")
    done = run(chosen, folder)
    path = ROOT / "docs" / "results" / f"{folder.name}.md"
    atomic.write_text(path, page_of(done, machine(detect()), name))
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
