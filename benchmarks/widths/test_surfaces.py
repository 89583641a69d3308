"""What is said of a search by a surface comes from its own tables."""

from __future__ import annotations

from benchmarks.surfaces import best_candidate, line


def test_a_row_of_the_page_says_what_the_tables_say(tmp_path):
    (tmp_path / "networks.csv").write_text("round,seconds\n1,60\n1,90\n2,90\n")
    (tmp_path / "surfaces.csv").write_text("round,seeds,explained\n1,0.5,0.1\n2,0.2,-0.25\n")
    finals = "foretold,loss_0,loss_1,conv1\n1,1.0,2.0,8\n1,1.5,1.3,9\n1,1.0,1.2,12\n"
    (tmp_path / "finals.csv").write_text(finals)
    assert best_candidate(tmp_path)["conv1"] == "12"
    told = f"| {tmp_path.name} | 3 | 4 min | 0.200 | -0.25 | -0.400 ± 0.200 |"
    assert line(tmp_path) == f"{told}  |  |  | 0 |"
    rows = (
        "seed,what,accuracy\n1,uniform,0.5\n1,best candidate,0.6\n2,uniform,0.5\n2,best candidate,0.62\n3,uniform,0.5\n"
    )
    (tmp_path / "fresh.csv").write_text(rows)
    assert line(tmp_path) == f"{told} 50.00 % | +11.00 | 0.058 | 2 |"
