"""Networks on disk: a folder of JSON and safetensors from which the user's own model code rebuilds them, bit for bit.

    plan.json            the widths, replayable with `nce-fx apply`
    history.json         the passes that were applied to the traced model, with what they decided
    model.safetensors    parameters and buffers, quantizers' included
    constants.safetensors  tensors that the graph computes with and that are no part of its state, where there are any
    report.json          what was done, how to rebuild, and the SHA-256 of the other files
    graph.txt            the rewritten graph, for people
    report.html          the report as a page, for people
    float.safetensors    the float network that the result is held against (`nce-fx rewrite` writes it)

A graph says how it was made in ``gm.meta["history"]`` (`nce_fx.pipeline.history`); ``gm.meta["plan"]`` is the
`WidthPlan` that resized it, ``gm.meta["spec"]`` the `QuantSpec` that quantized it.
Nothing here is pickle: a file can be wrong, but it cannot run code.
"""

import hashlib
import json
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.fx import GraphModule

from nce_fx.arguments import checked
from nce_fx.copying import copy_model
from nce_fx.data import BUILT_IN
from nce_fx.devices import check_values
from nce_fx.errors import ArtifactError, PlanError
from nce_fx.files import replaced
from nce_fx.models import MODELS
from nce_fx.nearest import nearest_path
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.by_name import known_pass
from nce_fx.paths import module_at
from nce_fx.pipeline import Pass
from nce_fx.pipeline.contract import tensors_of
from nce_fx.pipeline.history import history_of, set_training_modes, training_modes
from nce_fx.pipeline.history_json import HistoryRecord, StepRecord, passes_of
from nce_fx.plain_text import read_json
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantizers.state_dict import fit_problem
from nce_fx.report.page import page
from nce_fx.report.records import Comparison, Manifest, ModelReference, Retraining, RewriteReport, manifest_digest
from nce_fx.report.view import view_of
from nce_fx.signature import call_of, signature_of
from nce_fx.tensor_file import from_bytes, to_bytes
from nce_fx.tracing import trace
from nce_fx.validated import first_problem
from nce_fx.version import __version__

VERSION = 2
PLAN, HISTORY, WEIGHTS, CONSTANTS, FLOAT, REPORT, GRAPH, PAGE = (
    "plan.json",
    "history.json",
    "model.safetensors",
    "constants.safetensors",
    "float.safetensors",
    "report.json",
    "graph.txt",
    "report.html",
)
CHECKPOINTS = "training"
"""The folder inside a result where retraining keeps its checkpoints and logs."""
OURS = frozenset({PLAN, HISTORY, WEIGHTS, CONSTANTS, FLOAT, REPORT, GRAPH, PAGE, CHECKPOINTS})


@checked
def save(
    gm: GraphModule,
    directory: str | Path,
    *,
    force: bool = False,
    report: RewriteReport | None = None,
    retraining: Retraining | None = None,
    comparison: Comparison | None = None,
    model: ModelReference | None = None,
    float_model: nn.Module | None = None,
    keep_checkpoints: bool = False,
    float_log: bytes | None = None,
) -> None:
    """Write a rewritten network to a folder, all of it or nothing.

    Args:
        gm: a graph that `trace`, `resize` or `quantize` made.
        directory: the folder; created where it is not there.
        force: replace a result that the folder already holds. Files that are not ours stay.
        report: what the compiler decided, `RewriteResult.report`.
        retraining: how the network is to be retrained, or was.
        comparison: what came of training, `nce_fx.comparison.compare`.
        model: how the command line names the model.
        float_model: the network before, kept beside for distillation and comparison.
        keep_checkpoints: leave the checkpoints of an earlier training in place.
        float_log: how the float network was trained, a CSV table, for a result whose own training is still to come.

    Raises:
        ArtifactError: the folder holds a result, cannot be written, or something was done to the graph that `load`
            could not do again.
    """
    directory = Path(directory)
    if not force:
        check_free(directory)
    check_values(gm, "saving")
    history, spec = history_of(gm), gm.meta.get("spec")
    history.check(gm)
    plan = gm.meta.get("plan", WidthPlan({}, {}, history.graph))
    record = HistoryRecord.of(history, signature_of(gm), training_modes(gm))
    files: dict[str, bytes] = {
        PLAN: plan.to_json().encode(),
        HISTORY: record.to_json().encode(),
        WEIGHTS: to_bytes(gm.state_dict()),
        GRAPH: _text(gm),
    }
    constants = _constants(gm)
    if constants:
        files[CONSTANTS] = to_bytes(constants)
    if float_model is not None:
        files[FLOAT] = to_bytes(float_model.state_dict())
    manifest = Manifest(
        format="nce-fx",
        version=VERSION,
        nce_fx=__version__,
        model=model,
        inputs=signature_of(gm),
        training=gm.training,
        quantization=asdict(spec) if spec is not None else None,
        files={name: _digest(content) for name, content in files.items()},
        rewrite=report,
        retraining=retraining,
        comparison=comparison,
    )
    files[REPORT] = manifest.to_json().encode()
    view = view_of(
        "a network" if model is None else model.reference,
        plan,
        gm,
        original=float_model,
        report=report,
        comparison=comparison,
        logs=directory / CHECKPOINTS if keep_checkpoints else None,
        sweep=directory,
    )
    files[PAGE] = page(view).encode()
    ours = OURS - {CHECKPOINTS} if keep_checkpoints else OURS
    with replaced(directory, ours) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        if float_log is not None:
            (fresh / CHECKPOINTS / "float").mkdir(parents=True)
            (fresh / CHECKPOINTS / "float" / "log.csv").write_bytes(float_log)


@checked
def load(directory: str | Path, model: nn.Module, *, passes: Iterable[type[Pass]] = ()) -> GraphModule:
    """Rebuild a saved network from the user's own model; its outputs equal the saved one's, bit for bit.

    Args:
        directory: a folder that `save` wrote.
        model: the network before it was rewritten, with any weights; it is not changed.
        passes: classes of the caller's own passes that the folder names; nothing that it names is imported.

    Raises:
        ArtifactError: files are missing, damaged, foreign or of a newer version, or name a pass that is not known.
        PlanError: the folder is of another model.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    plan = read_plan(directory, manifest)
    state = read_result_weights(directory, manifest)
    record = read_history(directory, manifest, plan)
    steps = passes_of(record.steps, partial(known_pass, given=tuple(passes)))  # Before anything takes long.
    # Modules that a plan leaves alone may be shared with the traced model: load into a copy.
    own = copy_model(model)
    if manifest.version == 1 and FLOAT in manifest.files:
        # It does not say which channels a narrowed group kept: those which the weights that it was made from choose.
        _load_state(own, read_result_weights(directory, manifest, FLOAT), directory / FLOAT)
    set_training_modes(own, record.traced_modes)
    gm = trace(own, call_of(record.inputs))
    if not record.graph or model_fingerprint(gm) != record.graph:
        check_plan(plan, gm)
    if record.graph and model_fingerprint(gm) != record.graph:
        raise PlanError(f"{directory} is of another model: an operation or a shape differs from this one's")
    gm = record.replay(gm, steps)
    if (
        manifest.version == 1
        and FLOAT not in manifest.files
        and any("channel_order" in name for name in _constants(gm))
    ):
        warnings.warn(
            f"{directory} is of version 1 and does not say which channels of narrowed groups stayed: the network is "
            "what was saved if the model that was given has the weights that it was made from",
            stacklevel=2,
        )
    _load_state(gm, state, directory / WEIGHTS)
    if CONSTANTS in manifest.files:
        _load_constants(gm, read_result_weights(directory, manifest, CONSTANTS), directory / CONSTANTS)
    set_training_modes(gm, record.modes)
    if plan.model:
        gm.meta["plan"] = plan
    return gm


def load_float(directory: str | Path, model: nn.Module) -> nn.Module:
    """Return a copy of the model with the float weights that a result folder keeps.

    Raises:
        ArtifactError: the folder has none, or they do not fit the model.
    """
    directory = Path(directory)
    restored = copy_model(model)
    _load_state(restored, read_result_weights(directory, read_manifest(directory), FLOAT), directory / FLOAT)
    return restored


def check_free(directory: str | Path, names: Iterable[str] = OURS) -> None:
    """Raise where a folder holds a result already, one of these names.

    Raises:
        ArtifactError: says which folder, and what to do.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ArtifactError(f"{directory} is a file, not a folder: choose another --out")
    held = sorted(name for name in names if (directory / name).exists())
    if held:
        command = _goes_on(directory)
        begun = f"; to go on with its training: {command}" if command else ""
        raise ArtifactError(f"{directory} already holds a result ({held[0]}): choose another folder, or --force{begun}")


def _goes_on(directory: Path) -> str:
    """Return the command that goes on where a folder says how it is to be retrained, and not what came of that."""
    try:
        manifest = read_manifest(directory)
    except ArtifactError:
        return ""
    if manifest.retraining is None or manifest.comparison is not None:
        return ""
    return retrain_command(directory, manifest.model.reference if manifest.model else "", manifest.retraining)


def retrain_command(directory: str | Path, model: str, retraining: Retraining, *more: str) -> str:
    """Return the command for the shell that goes on with a training: ``nce-fx retrain out --model nets.py:build``.

    A folder runs no code by itself, so what is code is named again; ``more`` are further options.
    """
    named = {"--model": model, "--data": retraining.data, "--loss": retraining.loss, "--metric": retraining.metric}
    code = [part for option, value in named.items() if value and is_code(value) for part in (option, value)]
    rivals = () if retraining.uniform else ("--no-uniform",)
    return shlex.join(["nce-fx", "retrain", str(directory), *code, *rivals, *more])


def is_code(reference: str) -> bool:
    """Return whether a reference names code to import, not something built in."""
    return ":" in reference and reference not in MODELS and reference.partition(":")[0] not in BUILT_IN


def read_manifest(directory: str | Path) -> Manifest:
    """Read and check `report.json`.

    Raises:
        ArtifactError: it is missing, damaged, foreign or of a newer version.
    """
    path = Path(directory) / REPORT
    if Path(directory).is_file():
        raise ArtifactError(f"{directory} is a file, not a folder: give one that `nce-fx rewrite` wrote")
    try:
        content = read_json(_read(path))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged, it is not JSON: write the result again") from error
    if not isinstance(content, dict) or content.get("format") != "nce-fx":
        raise ArtifactError(f"{path} is not nce-fx's: give a folder that `nce-fx rewrite` or `nce_fx.save` wrote")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ArtifactError(f"{path} has version {version}, this nce-fx reads up to {VERSION}: install a newer nce-fx")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged at {first_problem(error)}") from error
    if manifest_digest(content) != manifest.digest:
        raise ArtifactError(f"{path} is damaged, its digest does not match: write the result again")
    return manifest


def read_plan(directory: str | Path, manifest: Manifest) -> WidthPlan:
    """Read and check `plan.json`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    return WidthPlan.from_json(_text_in(Path(directory) / PLAN, manifest))


def read_history(directory: str | Path, manifest: Manifest, plan: WidthPlan) -> HistoryRecord:
    """Read and check `history.json`; of a folder of version 1, return what it did: resize, quantize, fold.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    if manifest.version > 1:
        return HistoryRecord.from_json(_text_in(Path(directory) / HISTORY, manifest))
    steps = []
    if plan.changed:
        steps.append(StepRecord(name="resize", options={"plan": json.loads(plan.to_json())}))
    if manifest.quantization is not None:
        steps.append(StepRecord(name="quantize", options=manifest.quantization))
    if manifest.folded is not None:
        fold = StepRecord(name="fold-batch-norm", options={})
        steps.insert(len(steps) - (manifest.folded == "float" and manifest.quantization is not None), fold)
    modes = {"": manifest.training}
    return HistoryRecord(graph="", inputs=manifest.inputs, traced_modes=modes, modes=modes, steps=tuple(steps))


def read_result_weights(directory: str | Path, manifest: Manifest, name: str = WEIGHTS) -> dict[str, Tensor]:
    """Read and check a safetensors file of a result.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path = Path(directory) / name
    return from_bytes(_checked(path, manifest), path)


def _load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    problem = fit_problem(model, state)
    if problem is not None:
        raise ArtifactError(f"{path} does not fit the model: {problem}")
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if name in state and value.dtype != state[name].dtype:
                value.data = value.data.to(state[name].dtype)
        model.load_state_dict(dict(state), strict=False)


def _constants(gm: GraphModule) -> dict[str, Tensor]:
    """Return the tensors of a graph that are no part of its state: buffers that are not kept, and plain attributes."""
    state = gm.state_dict(keep_vars=True)
    kept = {id(value) for value in state.values()}
    return {path: tensor for path, tensor in tensors_of(gm) if path not in state and id(tensor) not in kept}


def _load_constants(gm: GraphModule, constants: Mapping[str, Tensor], path: Path) -> None:
    own = _constants(gm)
    if own.keys() != constants.keys():
        odd = sorted(own.keys() ^ constants.keys())[0]
        raise ArtifactError(f"{path} does not fit the model: {odd} is in one of them only")
    for name, value in constants.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module_at(gm, owner) if owner else gm, leaf, value.to(own[name].device))


def _text(gm: GraphModule) -> bytes:
    return f"{gm.graph}\n\n{gm.code.strip()}\n".encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is not there: give a folder that `nce-fx rewrite` or `nce_fx.save` wrote"
            f"{nearest_path(path.parent)}"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def _text_in(path: Path, manifest: Manifest) -> str:
    try:
        return _checked(path, manifest).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is damaged, it is not text: write the result again") from error


def _checked(path: Path, manifest: Manifest) -> bytes:
    content = _read(path)
    if path.name not in manifest.files:
        raise ArtifactError(f"{path} is not listed in {REPORT}: the files are not of one result")
    if _digest(content) != manifest.files[path.name]:
        raise ArtifactError(f"{path} is damaged or from another result, its SHA-256 is not the one in {REPORT}")
    return content
