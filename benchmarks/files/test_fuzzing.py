"""Damaged artifacts are refused in words or load as what they were; benchmarks.fuzz_artifacts does more of it."""

import pytest
from benchmarks.fuzz_artifacts import KINDS, fuzz


@pytest.mark.long
def test_damaged_artifacts_are_refused_or_load_as_they_were(tmp_path):
    found = fuzz(range(10 * len(KINDS)), tmp_path)
    assert {name.split(", ")[0] for name in found} == KINDS.keys()
    outcomes = {outcome for counts in found.values() for outcome in counts}
    assert outcomes <= {"refused", "loads as it was", "loads as what it says"}
    assert sum(counts["refused"] for counts in found.values()) > 5 * len(KINDS)
