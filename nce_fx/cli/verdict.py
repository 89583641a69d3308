"""What is said last: which widths did better, and what to do with the result."""

import shlex
from pathlib import Path

from nce_fx.artifacts import is_code
from nce_fx.report.records import Comparison, ResultRow
from nce_fx.report.tables import measured

NARROWED = "evenly narrowed"
"""What a rival is called whose widths are all narrowed by one factor, before its bits."""
_LOWER_IS_BETTER = ("loss", "mean_squared_error", "l1")


def verdict(comparison: Comparison, rewritten: str) -> str:
    """Return which widths did better: ``its own widths did better in this run (83.33 % to 75.00 %)``.

    The rewritten network is held against the best of its rivals that costs no more. It is an empty string where there
    is no rival, or nobody knows which value of the metric is better.
    """
    sign = 1 if comparison.is_share else -1 if comparison.metric in _LOWER_IS_BETTER else 0
    ours = comparison.row(rewritten)
    rivals = [row for row in comparison.rows[1:] if row.network != rewritten]
    narrowed = [row for row in rivals if row.network.startswith(NARROWED)]
    if ours is None or not rivals or not sign:
        return ""

    def better(row: ResultRow) -> float:
        return sign * float((row.accuracy if row.accuracy is not None else row.score) or 0.0)

    best = max(narrowed or rivals, key=better)
    theirs = "widths narrowed evenly" if narrowed else "its own widths"
    mine, other = measured(comparison, ours), measured(comparison, best)
    if better(best) > better(ours):
        return f"{theirs} did better in this run ({other} to {mine})"
    if better(best) < better(ours):
        return f"the rewritten widths did better in this run ({mine} to {other} for {theirs})"
    return f"the rewritten widths did as well in this run as {theirs} ({mine})"


def next_steps(directory: Path, model: str) -> str:
    """Return the commands that look at a trained result and write it for use elsewhere."""
    code = ["--model", model] if is_code(model) else []
    folder = str(directory)
    export = shlex.join(["nce-fx", "export", folder, "--onnx", "model.onnx", *code])
    return f"next: {shlex.join(['nce-fx', 'inspect', folder, *code])}; {export}"
