"""Files from strangers are read or refused in one clear line; benchmarks.strangers reads more of them."""

import pytest
from benchmarks.strangers import ends, kinds


@pytest.mark.long
def test_files_from_strangers_are_read_or_refused_in_one_clear_line(tmp_path):
    for kind in kinds(tmp_path / "good"):
        found = {end for _, end in ends(kind, range(40), tmp_path)}
        assert found <= {"read", "refused"}, f"{kind.name}: {found}"
        assert "refused" in found, kind.name
