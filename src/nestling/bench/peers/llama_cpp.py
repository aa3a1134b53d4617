"""llama.cpp's own batched benchmark: a turn runs it once; loading the model is not counted.

Of several builds the first that does not crash here.
"""

from __future__ import annotations

import json
import subprocess

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
        done = subprocess.run([binaries[0], *options], capture_output=True, text=True)
        if done.returncode < 0 and len(binaries) > 1:  # ended by a signal
            del binaries[0]
            return turn()
        done.check_returncode()
        line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        told = json.loads(line)
        return {"seconds": told["t"], "decoding": told["t_tg"]}

    turns.take(turn)


if __name__ == "__main__":
    main()
