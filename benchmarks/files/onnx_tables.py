"""Write the tables of docs/deploy.md from the results of the other commands: `python -m benchmarks.onnx_tables`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.pages import DOCS, RESULTS, load, put

DOCUMENT = DOCS / "deploy.md"


def write_page() -> None:
    """Write every table that has results."""
    formats = load(RESULTS / "onnx_formats.json")
    put(DOCUMENT, "formats summary", formats_summary(formats))
    put(DOCUMENT, "formats table", formats_table(formats))
    put(DOCUMENT, "levels table", levels_table(load(RESULTS / "onnx_levels.json")))
    put(DOCUMENT, "speed table", speed_table(load(RESULTS / "onnx_speed.json")))
    put(DOCUMENT, "qonnx table", qonnx_table(load(RESULTS / "onnx_qonnx.json")))


def formats_summary(rows: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield what the rows of int2 say together, with exact scales and as the quantizers were published."""
    yield "| int2 | networks | rows | of them within 1e-5 | images beyond | another class |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, exact in (("with `--exact`", True), ("without", False)):
        chosen = {
            key: row["levels"].values()
            for key, row in rows.items()
            if key.endswith("/int2") and "levels" in row and (", exact/" in key) is exact
        }
        networks = len({key.split("/")[0] for key in chosen})
        images, classes = (
            f"{sum(max(entry[what] for entry in levels) for levels in chosen.values()):,} of {1000 * len(chosen):,}"
            for what in ("images", "arg_max")
        )
        close = sum(all(entry["images"] == 0 for entry in levels) for levels in chosen.values())
        yield f"| {name} | {networks} | {len(chosen)} | {close} | {images} | {classes} |"


def formats_table(rows: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield a row for every network, quantizer and format that was measured."""
    heads = (
        "network, quantizers, format, difference, images, arg-max, PyTorch itself, accuracy % (epochs), classes, size"
    )
    yield f"| {heads.replace(', ', ' | ')} |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for key, row in rows.items():
        network, pair, name = key.split("/")
        if "levels" not in row:
            yield f"| {network} | {pair} | {name} | {row['trouble']} | | | | | | |"
            continue
        levels = row["levels"]
        followed = [entry.get("trouble") or entry["followed"] for entry in levels.values() if len(entry) > 3]
        trouble = next((entry for entry in followed if isinstance(entry, str)), None)
        # What onnxruntime computes in integers is another number on purpose; its worst is in the columns beside.
        left = trouble or f"{max(followed):.0e}"
        worst = max(entry["images"] for entry in levels.values())
        arg_max = max(entry["arg_max"] for entry in levels.values())
        itself, accuracy = row["pytorch_itself"], f"{100 * row['accuracy']:.1f} ({row['epochs']})"
        size = f"{row['size'] / 1e6:,.2f} MB, 1/{row['float_size'] / row['size']:.1f}"
        yield (
            f"| {network} | {pair} | {name} | {left} | {worst} | {arg_max} |"
            f" {itself['images']}, {itself['arg_max']} | {accuracy} | {row['classes']} | {size} |"
        )


def levels_table(rows: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield a row for every network whose integer file was compared value by value, plain beside exact."""
    yield (
        "| network | accuracy % | values | another level | own | another class | float nodes | the same, exact |"
        " by default, exact |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for network in sorted({key.split("/")[0] for key in rows}):
        plain, exact, default = (rows.get(f"{network}/{name}", {}) for name in ("plain", "exact", "default"))
        cells = [plain.get("trouble", "not measured"), *[""] * 5]
        if "off" in plain:
            cells = [
                "" if plain["accuracy"] is None else f"{100 * plain['accuracy']:.1f}",
                f"{plain['values'] / 1e6:.1f} M",
                f"{plain['off']} ({plain['off'] / plain['values']:.0e})",
                f"{plain['own']} of {plain['own_values'] / 1e6:.1f} M",
                f"{plain['classes']}",
                f"{plain['float_nodes']}",
            ]
        yield f"| {' | '.join([network, *cells, _differing(exact), _differing(default)])} |"


def _differing(row: dict[str, Any]) -> str:
    """Say of a row of exact scales how many values and classes differ."""
    if "off" not in row:
        return str(row.get("trouble", "not measured"))
    return f"{row['off']} of {row['values'] / 1e6:.1f} M, {row['classes']} of {row.get('images', 1000):,}"


def speed_table(rows: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield a row for every network and file that was timed, and the processor that it was timed on."""
    yield (
        "| network | file | size | batch 1 | again | batch 16 | session | memory | differences | float nodes |"
        " how it multiplies |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    for key, row in rows.items():
        network, name = key.split("/")
        size = f"{row['size'] / 1e6:,.2f} MB, 1/{row['float_size'] / row['size']:.1f}"
        parts = ("ratio_1", "ratio_again", "ratio_16")
        one, again, many = (f"{row[part]:.2f}" if part in row else "" for part in parts)
        differs = f"{row['difference']:.0e}, {row['on_border']}" if "difference" in row else ""
        memory, left = f"{row['memory']:.2f}" if "memory" in row else "", row.get("float_nodes", "")
        yield (
            f"| {network} | {name} | {size} | {one} | {again} | {many} | {row['session']:.2f} | {memory} | {differs} |"
            f" {left} | {row['operators']} |"
        )
    yield ""
    yield "Processor: " + "; ".join(sorted({row["processor"] for row in rows.values()})) + "."


def qonnx_table(rows: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield a row for every network that the qonnx package read."""
    yield "| network | quantizers | difference | MACs, qonnx / ours | bit operations, qonnx / ours |"
    yield "|---|---|--:|--:|--:|"
    for key, row in rows.items():
        network, pair = key.split("/")
        yield (
            f"| {network} | {pair} | {row['difference']:.0e} | {row['qonnx_macs']:,} / {row['macs']:,} |"
            f" {row['qonnx_bit_ops']:,} / {row['bit_ops']:,} |"
        )


if __name__ == "__main__":
    write_page()
