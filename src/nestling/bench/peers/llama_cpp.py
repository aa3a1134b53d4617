"""llama.cpp's own batched benchmark: a turn runs it once; loading the model is not counted."""

from __future__ import annotations

import json
import subprocess

from turns import Turns


def main() -> None:
    turns = Turns()
    s = turns.setting
    rows, prompt, answer = len(s["prompts"]), len(s["prompts"][0]), s["answer_tokens"]
    command = [
        s["binary"], "-m", s["gguf"], "-npp", str(prompt), "-ntg", str(answer), "-npl", str(rows),
        "-c", str(rows * (prompt + answer)), "-t", str(s["threads"]), "-tb", str(s["threads"]),
        "--output-format", "jsonl",
    ]  # fmt: skip

    def turn() -> dict[str, float]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        told = json.loads(line)
        return {"seconds": told["t"], "decoding": told["t_tg"]}

    turns.take(turn)


if __name__ == "__main__":
    main()
