from pathlib import Path
def write_report(results: Path, report: Path) -> None: pass
