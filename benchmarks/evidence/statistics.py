"""What runs say together: means, deviations, and differences to the uniform network of the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from benchmarks.evidence.records import Run


@dataclass(frozen=True)
class Summary:
    """One row of a table, over its seeds; accuracies and differences in percent points."""

    row: str
    seeds: int
    mean: float
    deviation: float
    """Of a sample; not a number below two seeds."""
    difference: float
    """Mean over the seeds that both have of this row minus the reference; not a number where they share none."""
    p: float
    """Two-sided paired t-test; not a number below two pairs, and where no pair differs."""
    pairs: int
    macs: float
    params: float
    bit_ops: float
    weight_bytes: float
    activation_bytes: float
    search_seconds: float
    train_seconds: float


def summarise(runs: Sequence[Run], reference: Sequence[Run]) -> Summary:
    """Return the summary of the runs of one row, held against those of another."""
    accuracies = [100 * run.accuracy for run in runs]
    known = {run.seed: 100 * run.accuracy for run in reference}
    pairs = [(100 * run.accuracy, known[run.seed]) for run in runs if run.seed in known]
    return Summary(
        row=runs[0].row,
        seeds=len(runs),
        mean=mean(accuracies),
        deviation=deviation(accuracies),
        difference=mean([ours - theirs for ours, theirs in pairs]),
        p=paired_p(pairs),
        pairs=len(pairs),
        macs=mean([run.macs for run in runs]),
        params=mean([run.params for run in runs]),
        bit_ops=mean([run.bit_ops for run in runs]),
        weight_bytes=mean([run.weight_bytes for run in runs]),
        activation_bytes=mean([run.activation_bytes for run in runs]),
        search_seconds=mean([run.search_seconds for run in runs]),
        train_seconds=mean([run.train_seconds for run in runs]),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean; not a number for no values."""
    return fmean(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; not a number below two values."""
    return stdev(values) if len(values) > 1 else math.nan


def paired_p(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the p of a two-sided paired t-test; not a number below two pairs, and where no pair differs."""
    if len(pairs) < 2 or all(ours == theirs for ours, theirs in pairs):
        return math.nan
    return float(stats.ttest_rel([ours for ours, _ in pairs], [theirs for _, theirs in pairs]).pvalue)
