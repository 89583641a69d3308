"""`nce-fx export`: the network of a result folder as an ONNX file, as a torch.export archive, or its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options


def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `nce-fx rewrite` wrote.", show_default=False)
    ],
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FILE.onnx", help="Write the network as ONNX.", show_default=False)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="integer|int2|qcdq|qonnx",
            help="integer: packed weights, computed in integers; int2: packed weights, computed in float; "
            "qcdq: int8 containers; qonnx: for FPGA flows. By default integer, int2 for a network that it is not for.",
            show_default=False,
        ),
    ] = None,
    fold_bn: Annotated[bool, typer.Option("--fold-bn", help="Fold BatchNorm into the scales of the weights.")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Samples in a batch; any number by default.")
    ] = None,
    pt2: Annotated[
        Path | None,
        typer.Option("--pt2", metavar="FILE.pt2", help="Write a torch.export archive.", show_default=False),
    ] = None,
    packed: Annotated[
        Path | None,
        typer.Option(
            "--packed", metavar="FILE.safetensors", help="Write the weights alone, four to a byte.", show_default=False
        ),
    ] = None,
    model: options.ModelAgain = None,
    own_passes: options.OwnPasses = None,
    as_json: options.Json = False,
) -> None:
    """Write the network in DIR for use without its code; the file is compared with PyTorch before it is kept."""
    from dataclasses import asdict

    from nce_fx import artifacts
    from nce_fx.cli.parsing import build_model
    from nce_fx.cli.retraining import model_of
    from nce_fx.cli.terminal import Terminal
    from nce_fx.errors import ExportError, InputError
    from nce_fx.export import export_onnx, export_pt2, save_packed
    from nce_fx.passes.by_name import pass_named

    terminal = Terminal.of(as_json)
    if onnx is None and pt2 is None and packed is None:
        raise InputError("nothing to write: add --onnx FILE.onnx, --pt2 FILE.pt2 or --packed FILE.safetensors")
    manifest = artifacts.read_manifest(directory)
    args = manifest.model.args if manifest.model is not None else {}
    built = build_model(model_of(directory, model, manifest), args, seed=0)
    gm = artifacts.load(directory, built, passes=[pass_named(name) for name in own_passes or ()])
    content: dict[str, object] = {"directory": str(directory)}
    if packed is not None:
        save_packed(gm, packed)
        content["packed"] = {"path": str(packed), "size": packed.stat().st_size}
        terminal.note(f"written to {packed}: {packed.stat().st_size:,} bytes")
    if pt2 is not None:
        with terminal.steps() as steps:
            steps("torch.export, and compare")
            archive = export_pt2(gm, pt2, batch=batch)
        content["pt2"] = asdict(archive) | {"path": str(archive.path)}
        terminal.note(f"written to {pt2}: {archive.size:,} bytes, batch of {_size(archive.batch)}, equal bit for bit")
    if onnx is not None:
        with terminal.steps() as steps:
            steps(f"export, and compare with PyTorch ({format or 'integer'})")
            try:
                written = export_onnx(gm, onnx, format=format or "integer", fold_bn=fold_bn, batch=batch)
            except ExportError as error:
                if format is not None:
                    raise
                terminal.note(f"not in integers, so as int2: {error}")
                written = export_onnx(gm, onnx, fold_bn=fold_bn, batch=batch)
        content["onnx"] = asdict(written) | {"path": str(written.path)}
        terminal.note(f"written to {onnx}: {written.size:,} bytes, batch of {_size(written.batch)}")
        for level, agreement in written.agreement.items():
            terminal.note(
                f"onnxruntime, optimizations {level}: {agreement.difference:.1e} of the largest output from PyTorch"
                + (f", {agreement.on_border} values on the border of two levels" if agreement.on_border else "")
            )
        for node, reason in written.float_nodes.items():
            terminal.note(f"in float: {node}: {reason}")
        if any(agreement.on_border for agreement in written.agreement.values()):
            terminal.note("rewrite with --exact for a network whose values every runtime rounds alike (docs/deploy.md)")
    terminal.finish(content)


def _size(batch: int | None) -> str:
    return "any size" if batch is None else str(batch)
