"""Damage every kind of artifact in every way, and see that it is refused in words or loads as what it was.

    python -m benchmarks.fuzz_artifacts --cases 2000

Truncated, flipped and swapped files; *vouched for*: the sums over a damaged file are made to fit, so that what reads it
is reached. Such a file may load as another network than before, as a file that was written so does, but never fail in
other than clear words. Exits 1 where a network is wrong or an error is not ours.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nce_fx
from benchmarks import pages
from nce_fx import artifacts
from nce_fx.errors import NceFxError
from nce_fx.export import export_pt2, load_pt2, save_packed
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.report.records import Manifest
from nce_fx.tensor_file import digest
from nce_fx.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint

REPORT = pages.RESULTS / "fuzz_artifacts.json"
SIDE = 8


@dataclass(frozen=True)
class Kind:
    """One kind of artifact: which file, and what reading it comes to, as text that is equal for equal networks."""

    file: str
    read: Callable[[Path], str]
    """(folder with all the files) -> a digest; raises NceFxError, or ValueError for the reader of the documentation."""


def documented_reader() -> Callable[[Path], Mapping[str, Any]]:
    """Return the reader of packed weights in docs/deploy.md."""
    text = (pages.DOCS / "deploy.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def read_packed" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    reader: Callable[[Path], Mapping[str, Any]] = names["read_packed"]
    return reader


def base() -> torch.nn.Module:
    """Return the user's model."""
    torch.manual_seed(0)
    return MODELS["resnet8"](width=4).eval()


def images() -> Tensor:
    """Return what networks are compared on."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def outputs(model: Callable[[Tensor], Tensor]) -> str:
    """Return the digest of what a network computes."""
    with torch.no_grad():
        return digest({"y": model(images())})


def checkpoint_digest(folder: Path) -> str:
    """Return the digest of all that a checkpoint says."""
    found = read_checkpoint(folder / CHECKPOINT)
    return json.dumps([found.steps, digest(found.tensors), found.state], sort_keys=True, default=str)


def packed_digest(folder: Path) -> str:
    """Return the digest of packed weights as the documented reader gives them."""
    weights = documented_reader()(folder / "packed.safetensors")
    return digest({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})


def replayed(folder: Path) -> str:
    """Return the widths of the network that a plan alone makes."""
    plan = nce_fx.WidthPlan.from_json(_text(folder / artifacts.PLAN))
    gm = nce_fx.trace(base(), (images()[:1],))
    check_plan(plan, gm)
    made = nce_fx.analyze_channels(nce_fx.resize(gm, plan)).widths
    return json.dumps(sorted(made.values()))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise NceFxError(f"{path} is not text") from error


CHECKPOINT = "checkpoint-000000003.safetensors"
KINDS: Mapping[str, Kind] = {
    "plan.json": Kind("plan.json", lambda folder: outputs(nce_fx.load(folder, base()))),
    "plan.json alone": Kind("plan.json", replayed),
    "history.json": Kind("history.json", lambda folder: outputs(nce_fx.load(folder, base()))),
    "report.json": Kind("report.json", lambda folder: outputs(nce_fx.load(folder, base()))),
    "model.safetensors": Kind("model.safetensors", lambda folder: outputs(nce_fx.load(folder, base()))),
    "float.safetensors": Kind("float.safetensors", lambda folder: outputs(artifacts.load_float(folder, base()))),
    "packed weights": Kind("packed.safetensors", packed_digest),
    "checkpoint": Kind(CHECKPOINT, checkpoint_digest),
    "pt2": Kind("model.pt2", lambda folder: outputs(load_pt2(folder / "model.pt2"))),
}


def write(folder: Path, seed: int) -> None:
    """Write one artifact of every kind."""
    example = images()[:1]
    result = nce_fx.rewrite(
        base(), (example,), batches=[(images(), torch.tensor([1, 2]))], budget=nce_fx.Budget(macs=1.0 - 0.2 * seed)
    )
    gm = result.graph_module.eval()
    nce_fx.save(gm, folder, report=result.report, float_model=result.original)
    save_packed(gm, folder / "packed.safetensors")
    export_pt2(gm, folder / "model.pt2")
    tensors = {f"model/{name}": value for name, value in gm.state_dict().items()}
    save_checkpoint(folder, Checkpoint(3, tensors, {"epoch": seed, "history": [{"loss": 1.25}], "run": "a" * 8}))


def truncated(content: bytes, chance: random.Random) -> bytes:
    """Cut the end off."""
    return content[: chance.randrange(len(content))]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Flip one bit, or several."""
    damaged = bytearray(content)
    # Half of them near the start, where headers are.
    reach = len(content) if chance.random() < 0.5 else min(len(content), 4000)
    for _ in range(chance.choice((1, 1, 3, 20))):
        damaged[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def vouch(folder: Path, file: str) -> None:
    """Make the sums in report.json fit a damaged file."""
    content = json.loads((folder / artifacts.REPORT).read_text())
    manifest = Manifest.model_validate(content)
    sums = manifest.files | {file: sha256((folder / file).read_bytes()).hexdigest()}
    (folder / artifacts.REPORT).write_text(manifest.model_copy(update={"files": sums}).to_json())


def run_case(
    case: int, name: str, originals: tuple[Path, Path], whole_read: Mapping[str, tuple[str, str]], folder: Path
) -> tuple[str, str]:
    """Damage one file, read it, and return (how it was damaged, what came of it)."""
    chance, kind = random.Random(case), KINDS[name]
    path, whole = folder / kind.file, (originals[0] / kind.file).read_bytes()
    in_folder = kind.file in (artifacts.PLAN, artifacts.HISTORY, artifacts.WEIGHTS, artifacts.FLOAT)
    way = chance.choice(("truncated", "flipped", "flipped", "swapped", *(("vouched for",) if in_folder else ())))
    allowed = {whole_read[name][0]}
    if way == "truncated":
        path.write_bytes(truncated(whole, chance))
    elif way == "flipped":
        path.write_bytes(flipped(whole, chance))
    elif way == "swapped":
        files = [entry.file for entry in KINDS.values()]
        other = originals[1] / (kind.file if chance.random() < 0.4 else chance.choice(files))
        path.write_bytes(other.read_bytes())
        if other.name == kind.file and name in ("packed weights", "checkpoint", "pt2"):
            allowed.add(whole_read[name][1])  # such a file is a whole network by itself, and that is the other one
    else:
        path.write_bytes(flipped(whole, chance) if chance.random() < 0.8 else truncated(whole, chance))
        vouch(folder, kind.file)
    try:
        got = kind.read(folder)
        if way == "vouched for" or name == "plan.json alone":
            return way, "loads as what it says"
        return way, "loads as it was" if got in allowed else "WRONG"
    except NceFxError as error:
        return way, "refused" if len(str(error).splitlines()) == 1 else f"MANY LINES {error}"
    except ValueError as error:
        return way, "refused" if name == "packed weights" and str(path) in str(error) else f"TRACEBACK {error!r}"
    except Exception as error:
        return way, f"TRACEBACK {error!r}"
    finally:
        for file in {kind.file, artifacts.REPORT}:
            shutil.copy(originals[0] / file, folder / file)


def fuzz(cases: range, working: Path) -> dict[str, Counter[str]]:
    """Return, for every kind and way, how often what came of it."""
    originals = (working / "one", working / "other")
    for seed, folder in enumerate(originals):
        write(folder, seed)
    whole_read = {name: (kind.read(originals[0]), kind.read(originals[1])) for name, kind in KINDS.items()}
    shutil.copytree(originals[0], working / "damaged")
    found: dict[str, Counter[str]] = {}
    for case in cases:
        name = list(KINDS)[case % len(KINDS)]
        way, outcome = run_case(case, name, originals, whole_read, working / "damaged")
        found.setdefault(f"{name}, {way}", Counter())[outcome] += 1
        if outcome.startswith(("WRONG", "TRACEBACK", "MANY")):
            print(f"case {case}: {name}, {way}: {outcome}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the cases, and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as working:
        found = fuzz(range(options.cases), Path(working))
    REPORT.write_text(json.dumps({name: dict(found[name]) for name in sorted(found)}, indent=1) + "\n")
    total: Counter[str] = sum(found.values(), Counter())
    print(json.dumps(total))
    sys.exit(any(outcome.startswith(("WRONG", "TRACEBACK", "MANY")) for outcome in total))


if __name__ == "__main__":
    main()
