"""``python -m nestling.data.curriculum``: count the content and name what is doubtful in it."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nestling.data.curriculum.generator import items, split_of
from nestling.data.curriculum.lint import lint
from nestling.data.curriculum.schema import CONTENT, SPLITS, load
from nestling.errors import DataError


def main() -> int:
    """Print the table and the problems; the exit status is 1 when there are any."""
    console = Console()
    try:
        content = load(Path(sys.argv[1]) if len(sys.argv) > 1 else CONTENT)
        table = Table("behaviour", "templates", "blind", "rows", "items", title="train / gate / test")
        for name, templates in content.templates.items():
            rows = content.rows(name)
            per_split = [sum(split_of(row.key) == split for row in rows) for split in SPLITS] if rows else []
            table.add_row(
                name,
                " / ".join(str(len(templates[split])) for split in SPLITS),
                str(sum(template.blind for template in templates["test"])),
                " / ".join(map(str, per_split)) or "-",
                " / ".join(str(len(items(split, 0, [name], curriculum=content))) for split in SPLITS),
            )
    except DataError as error:
        console.print(str(error), markup=False)
        return 1
    console.print(table)
    problems = list(lint(content))
    for problem in problems:
        console.print(problem, markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
