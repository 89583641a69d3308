"""What `nce-fx export` does: the network of a result folder, written in each form that was asked for."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from torch.fx import GraphModule

from nce_fx import artifacts
from nce_fx.cli.commands import Export
from nce_fx.cli.pass_hooks import between_passes
from nce_fx.cli.retraining import model_of_folder
from nce_fx.cli.terminal import Terminal
from nce_fx.errors import ExportError, InputError
from nce_fx.export import OnnxExport, export_onnx, export_pt2, save_packed
from nce_fx.export.network import model_explorer
from nce_fx.files import write_whole
from nce_fx.passes.by_name import pass_named
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.pipeline import Pipeline
from nce_fx.plain_text import number_of


def run(job: Export) -> None:
    """Write the files, and say how they compare with PyTorch."""
    terminal = Terminal.of(job.as_json)
    if not (job.onnx or job.pt2 or job.packed or job.explorer):
        raise InputError(
            "nothing to write: add --onnx FILE.onnx, --pt2 FILE.pt2, --packed FILE.safetensors or"
            " --model-explorer FILE.json"
        )
    passes = (FoldBatchNorm(),) if job.fold_bn and job.onnx is not None else ()
    if not passes and (job.verify_each or job.print_after):
        raise InputError("--verify-each and --print-after are about --fold-bn of an --onnx file: give these as well")
    fold = Pipeline(passes, between_passes(passes, job.verify_each, job.print_after, terminal))
    manifest = artifacts.read_manifest(job.directory)
    with terminal.busy(f"read {job.directory}"):
        model = model_of_folder(job.directory, job.model, manifest)
        gm = artifacts.load(job.directory, model, passes=[pass_named(name) for name in job.own_passes or ()])
    content: dict[str, Any] = {"directory": str(job.directory)}
    if job.packed is not None:
        save_packed(gm, job.packed)
        size = job.packed.stat().st_size
        content["packed"] = {"path": str(job.packed), "size": size}
        terminal.note(f"written to {job.packed}: {size:,} bytes")
    if job.explorer is not None:
        label = manifest.model.reference if manifest.model is not None else job.directory.name
        beside = job.explorer.with_suffix(".data.json")
        with terminal.busy(f"write {job.explorer}"):
            for path, value in zip((job.explorer, beside), model_explorer(gm, label, manifest.rewrite), strict=True):
                write_whole(path, json.dumps(value, indent=1).encode())
        content["model_explorer"] = {"graph": str(job.explorer), "data": str(beside)}
        terminal.note(f"written to {job.explorer} and {beside}, for Model Explorer")
    if job.pt2 is not None:
        with terminal.steps():
            archive = export_pt2(gm, job.pt2, batch=job.batch)
        content["pt2"] = asdict(archive) | {"path": str(archive.path)}
        size, batch = archive.size, _size(archive.batch)
        terminal.note(f"written to {job.pt2}: {size:,} bytes, batch of {batch}, equal bit for bit")
    if job.onnx is not None:
        written = _onnx(job, fold(gm).graph_module, terminal)
        content["onnx"] = asdict(written) | {"path": str(written.path)}
    terminal.finish(content)


def _onnx(job: Export, gm: GraphModule, terminal: Terminal) -> OnnxExport:
    """Write the ONNX file: in integers by default, in float where the network is not for that."""
    assert job.onnx is not None
    with terminal.steps():
        options: dict[str, Any] = {"batch": job.batch, "opset": job.opset}
        try:
            written = export_onnx(gm, job.onnx, format=job.format or "integer", **options)
        except ExportError as error:
            if job.format is not None:
                raise
            terminal.note(f"not in integers, so as int2: {error}")
            written = export_onnx(gm, job.onnx, **options)
    terminal.note(f"written to {job.onnx}: {written.size:,} bytes, batch of {_size(written.batch)}")
    for level, agreement in written.agreement.items():
        terminal.note(
            f"onnxruntime, optimizations {level}: {agreement.difference:.1e} of the largest output from PyTorch"
            + (
                f", {number_of(agreement.on_border, 'value')} on the border of two levels"
                if agreement.on_border
                else ""
            )
        )
    for node, reason in written.float_nodes.items():
        terminal.note(f"in float: {node}: {reason}")
    said = remedy(written.float_nodes.values(), gm.meta.get("spec"))
    if said:
        terminal.note(said)
    if any(agreement.on_border for agreement in written.agreement.values()):
        terminal.note("rewrite with --exact for a network whose values every runtime rounds alike (docs/deploy.md)")
    return written


def remedy(reasons: Iterable[str], spec: QuantSpec | None) -> str:
    """Return what puts sums and what shortcuts read into integers, where these are why nodes stay in float."""
    done = spec is not None and (spec.sums, spec.shortcuts) == ("int8", "quantized")
    at_sums = any('sums="int8"' in reason or "several" in reason for reason in reasons)
    return "rewrite with --sums int8 --shortcuts quantized for fewer nodes in float" if at_sums and not done else ""


def _size(batch: int | None) -> str:
    return "any size" if batch is None else str(batch)
