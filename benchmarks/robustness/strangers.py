"""Give every parser files from strangers, mutated in many ways: it reads them, or refuses in one clear line.

    python -m benchmarks.strangers --cases 10000            so many of each kind
    python -m benchmarks.strangers --only plan --cases 100

Bytes are flipped, cut, doubled; values of JSON and TOML are replaced by hostile ones: other types, huge numbers, deep
nesting, paths that lead elsewhere, what a terminal or a page would obey; headers of weights lie about sizes. Memory is
limited to `MEMORY` while a file is read. Exits 1 where an error is not ours, has more than one line, more than
`LONGEST` characters, or characters that a terminal obeys.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typer
from benchmarks.fuzz_artifacts import CHECKPOINT, base, flipped, truncated, write

import nce_fx
from benchmarks import pages
from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.cli.config_file import defaults_of
from nce_fx.cli.parsing import recipe_fields
from nce_fx.errors import NceFxError
from nce_fx.models.checkpoints import read_weights
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.by_name import pass_named
from nce_fx.pipeline.history_json import HistoryRecord
from nce_fx.pipeline.text import parse
from nce_fx.plain_text import LONGEST
from nce_fx.report.records import manifest_digest
from nce_fx.search import SearchRecipe
from nce_fx.training import Recipe
from nce_fx.training.checkpoint import read_checkpoint

REPORT = pages.RESULTS / "strangers.json"
MEMORY = 16 << 30
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 10**12, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf"), "", "x", "2", [], {}, [[]],
    "../../etc/passwd", "/etc/passwd", "~/x", "C:\\x", "a/b", "\x00", "\x1b]0;gone\x07", "\x1b[2J", "[/red]", "{{7*7}}",
    "</script><script>alert(1)</script>", "\ud800", "\u202eabc", "a" * 100_000, "os:system", "__class__", [1] * 1000,
    {"a": {"b": [1, 2, {"c": None}]}},
)  # fmt: skip
DEEP = "[" * 100_000


@dataclass(frozen=True)
class Kind:
    """One kind of file: a good one, and what reads it."""

    name: str
    good: bytes
    read: Callable[[Path], object]
    """(path of the file) -> anything."""
    mapping: Callable[[bytes], Any] = json.loads
    to_bytes: Callable[[Any], bytes] = lambda content: json.dumps(content).encode()
    """From what `mapping` returns."""


def manifest_bytes(content: Any) -> bytes:
    """Return a manifest whose digest fits, so that what is behind it is reached."""
    if isinstance(content, dict):
        content["digest"] = manifest_digest(content)
    return json.dumps(content).encode()


def header_of(content: bytes) -> Any:
    """Return the header of a safetensors file, with the JSON inside it as JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    inside = {key: json.loads(text) for key, text in header.get("__metadata__", {}).items()}
    return {
        "header": {**header, "__metadata__": inside},
        "tensors": content[8 + int.from_bytes(content[:8], "little") :].hex(),
    }


def with_header(content: Any) -> bytes:
    """Return the file of a header: what it says need not be so."""
    try:
        header, tensors = dict(content["header"]), bytes.fromhex(content["tensors"])
        header["__metadata__"] = {key: json.dumps(value) for key, value in header["__metadata__"].items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        return json.dumps(content).encode()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def kinds(folder: Path) -> Iterator[Kind]:
    """Make one good file of each kind."""
    write(folder, 0)
    names = base().state_dict().keys()
    yield Kind("plan", (folder / artifacts.PLAN).read_bytes(), lambda p: nce_fx.WidthPlan.from_json(_text(p)))
    yield Kind("history", (folder / artifacts.HISTORY).read_bytes(), lambda p: HistoryRecord.from_json(_text(p)))
    yield Kind("report", (folder / artifacts.REPORT).read_bytes(), lambda p: _manifest(p), to_bytes=manifest_bytes)
    recipe = json.dumps(Recipe(epochs=3).to_dict()).encode()
    yield Kind("recipe", recipe, lambda p: Recipe.from_dict(recipe_fields(_text(p))))
    search = json.dumps(SearchRecipe().to_dict()).encode()
    yield Kind("search recipe", search, lambda p: SearchRecipe.from_dict(recipe_fields(_text(p))))
    text = (
        b'resize{widths={"conv1":8},seed=3},quantize{weight_bits=3,overrides={"fc":"float"},weight=lsq},fold-batch-norm'
    )
    yield Kind("pipeline text", text, lambda p: parse(_text(p), pass_named), _pipeline, _pipeline_bytes)
    yield Kind("checkpoint", (folder / CHECKPOINT).read_bytes(), read_checkpoint, header_of, with_header)
    small = {"conv.weight": torch.ones(2, 3), "fc.bias": torch.zeros(4)}
    yield Kind(
        "weights",
        safetensors.torch.save(small),
        lambda p: read_weights(_as(p, "w.safetensors"), names),
        header_of,
        with_header,
    )
    (folder.parent / "shard.safetensors").write_bytes(safetensors.torch.save(small))
    index = json.dumps({"weight_map": dict.fromkeys(small, "shard.safetensors")}).encode()
    yield Kind("index of shards", index, lambda p: read_weights(_as(p, "m.safetensors.index.json"), names))
    torch.save({"state_dict": small, "epoch": 3}, folder / "w.pt")
    yield Kind("PyTorch's own", (folder / "w.pt").read_bytes(), lambda p: read_weights(_as(p, "w.pt"), names), _none)
    rows = [{"op": "conv", "c_in": 8, "c_out": 8, "h": 4, "w": 4, "bits": 2, "cost": 1.5}] * 3
    yield Kind("hardware table", json.dumps(rows).encode(), lambda p: HardwareTable.read(_as(p, "t.json")))
    context = _context()
    config = (
        b'max_macs = "0.8x"\nbits = 2\nfreeze = ["layer1.*", "fc"]\nexact = true\nrecipe = { learning_rate = 0.1 }\n'
    )
    yield Kind("configuration", config, lambda p: defaults_of(p, context), _toml, _toml_bytes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NceFxError("not text") from error


def _manifest(path: Path) -> object:
    folder = path.parent / "result"
    folder.mkdir(exist_ok=True)
    (folder / artifacts.REPORT).write_bytes(path.read_bytes())
    manifest = artifacts.read_manifest(folder)
    return manifest, [nce_fx.signature.call_of(manifest.inputs)]


def _as(path: Path, name: str) -> Path:
    target = path.with_name(name)
    target.write_bytes(path.read_bytes())
    return target


def _none(content: bytes) -> Any:
    raise ValueError


def _context() -> typer.Context:
    command = typer.main.get_command(app)
    return typer.Context(command.commands["rewrite"], info_name="rewrite")  # type: ignore[attr-defined]


def _pipeline(content: bytes) -> Any:
    return {"resize": {"widths": {"conv1": 8}, "seed": 3}, "quantize": {"weight_bits": 3, "overrides": {"fc": "float"}}}


def _pipeline_bytes(content: Any) -> bytes:
    if not isinstance(content, dict):
        return json.dumps(content).encode()
    steps = []
    for name, options in content.items():
        given = options.items() if isinstance(options, dict) else [("x", options)]
        steps.append(name + "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in given) + "}")
    return ",".join(steps).encode("utf-8", "surrogatepass")


def _toml(content: bytes) -> Any:
    return {
        "max_macs": "0.8x",
        "bits": 2,
        "freeze": ["layer1.*", "fc"],
        "exact": True,
        "recipe": {"learning_rate": 0.1},
    }


def _toml_bytes(content: Any) -> bytes:
    # JSON is TOML inside a value, but for `:` and null.
    lines = [f"{json.dumps(str(key))} = {_inline(value)}" for key, value in dict(content).items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return "1979-05-27" if value is None else json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def places(content: Any) -> list[tuple[Any, Any]]:
    """Return every container and key of nested JSON."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else []
        found += [(each, key) for key in keys]
        waiting += [each[key] for key in keys]
    return found


def replaced(kind: Kind, content: Any, chance: random.Random) -> bytes:
    """Replace, rename, drop or nest one value of a file, or several."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        every = places(content)
        if not every:
            break
        where, key = chance.choice(every)
        what = chance.random()
        if what < 0.6:
            where[key] = copy.deepcopy(chance.choice(HOSTILE))
        elif what < 0.75 and isinstance(where, dict):
            where[str(chance.choice(HOSTILE))] = where.pop(key)
        elif what < 0.9:
            del where[key]
        else:
            where[key] = [copy.deepcopy(where[key])]
    return kind.to_bytes(content)


def mutated(kind: Kind, chance: random.Random) -> bytes:
    """Return a file of a kind, damaged or made to be hostile."""
    way = chance.random()
    try:
        if way < 0.55:
            return replaced(kind, kind.mapping(kind.good), chance)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        pass
    if way < 0.7:
        return flipped(kind.good, chance)
    if way < 0.8:
        return truncated(kind.good, chance)
    if way < 0.9:
        one, two = sorted(chance.randrange(len(kind.good)) for _ in range(2))
        return kind.good[:two] + kind.good[one:two] * chance.choice((1, 2, 50)) + kind.good[two:]
    if way < 0.95:
        at = chance.randrange(len(kind.good))
        inserted = chance.choice((DEEP, '{"a":' * 50_000, "9" * 5000, "\x1b[2J", "\\ud800", "@/etc/passwd", "\x00"))
        return kind.good[:at] + inserted.encode() + kind.good[at:]
    return chance.choice((b"", DEEP.encode(), b"\xff" * 100, b"null", b"[]", b"{}", (2**63 - 1).to_bytes(8, "little")))


def outcome(kind: Kind, path: Path) -> str:
    """Return what came of reading a file: "read", "refused", or what is wrong with how it was refused."""
    try:
        kind.read(path)
    except (NceFxError, typer.BadParameter) as error:
        text = error.message if isinstance(error, typer.BadParameter) else str(error)
        if len(text.strip().splitlines()) != 1:
            return f"MANY LINES: {text[:200]!r}"
        if len(text) > LONGEST:
            return f"LONG: {text[:200]!r}"
        if not text.isprintable():
            return f"OBEYED: {text[:200]!r}"
        return "refused"
    except BaseException as error:
        return f"TRACEBACK: {type(error).__name__}: {str(error)[:200]!r}"
    return "read"


def ends(kind: Kind, cases: range, folder: Path) -> Iterator[tuple[int, str]]:
    """Read so many files of a kind; yield the case and what came of it."""
    for case in cases:
        path = folder / "file"
        path.write_bytes(mutated(kind, random.Random(f"{kind.name} {case}")))
        yield case, outcome(kind, path)


def main() -> None:
    """Run the cases, and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--only", help="kinds, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as working:
        folder = Path(working)
        for kind in kinds(folder / "good"):
            if options.only and kind.name not in options.only.split(","):
                continue
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            counts: Counter[str] = Counter()
            found[kind.name] = counts
            for case, end in ends(kind, range(options.cases), folder):
                counts[end.partition(":")[0]] += 1
                if end not in ("read", "refused") and counts[end.partition(":")[0]] <= 20:
                    print(f"{kind.name}, case {case}: {end}", flush=True)
            print(f"{kind.name}: {dict(counts)}", flush=True)
    pages.save(REPORT, pages.load(REPORT) | {name: dict(sorted(each.items())) for name, each in found.items()})
    sys.exit(any(counts.keys() - {"read", "refused"} for counts in found.values()))


if __name__ == "__main__":
    main()
