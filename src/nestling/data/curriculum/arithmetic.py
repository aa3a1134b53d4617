"""Small sums, as table rows."""

from __future__ import annotations

from typing import Any

_OPERATIONS = (("plus", "+"), ("minus", "-"), ("times", "*"))


def arithmetic_rows() -> list[dict[str, Any]]:
    """Sums and differences up to 20, products up to 12 x 12: ``{id, entity, a, b, op, sign, value}``.

    The entity is the unordered operand pair, so that 3 + 4, 4 + 3 and 3 * 4 fall into one split.
    """
    rows = []
    for op, sign in _OPERATIONS:
        low, high = (2, 12) if op == "times" else (1, 20)
        for a in range(low, high + 1):
            for b in range(low, (a if op == "minus" else high) + 1):
                value = {"plus": a + b, "minus": a - b, "times": a * b}[op]
                pair = f"numbers {min(a, b)} and {max(a, b)}"
                names = {"id": f"{a}-{op}-{b}", "entity": pair}
                rows.append({**names, "a": a, "b": b, "op": op, "sign": sign, "value": value})
    return rows
