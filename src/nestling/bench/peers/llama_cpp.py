"""llama.cpp's own batched benchmark: a turn runs it once; loading the model is not counted.

Of several builds the first that does not crash here.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence

from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    rows, prompt, answer = len(s["prompts"]), len(s["prompts"][0]), s["answer_tokens"]
    options = [
        "-m", s["gguf"], "-npp", str(prompt), "-ntg", str(answer), "-npl", str(rows),
        "-c", str(rows * (prompt + answer)), "-t", str(s["threads"]), "-tb", str(s["threads"]),
        "--output-format", "jsonl",
    ]  # fmt: skip
    binaries = list(s["binaries"])

    def turn() -> dict[str, float]:
        code, printed, peak = measured([binaries[0], *options])
        if code < 0 and len(binaries) > 1:  # ended by a signal
            del binaries[0]
            return turn()
        if code:
            raise subprocess.CalledProcessError(code, binaries[0])
        told = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        return {"seconds": told["t"], "decoding": told["t_tg"], "peak": peak}

    turns.take(turn)


def measured(command: Sequence[str]) -> tuple[int, str, int]:
    """Run it to its end: its return code, what it printed, and the most bytes it held in memory at once."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, printed, used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
