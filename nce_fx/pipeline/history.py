"""What was done to a graph since it was traced, as a value: `nce_fx.save` writes it, `nce_fx.load` does it again.

A history is the graph as it was traced and a step for every pass that changed it:

    resize{plan={"conv1": 8}, keep={...}}   ->   quantize{weight_bits=2}   ->   mine:Scale{factor=2.0}

It lies in ``gm.meta["history"]``, and whatever copies a graph takes it along. Each graph is known by its fingerprint
(`nce_fx.plan.model_fingerprint`), so that a change which no pass made is found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from nce_fx.errors import ArtifactError
from nce_fx.frozen import Frozen
from nce_fx.paths import module_at, modules_of
from nce_fx.pipeline.contract import plain_attributes
from nce_fx.plan import model_fingerprint
from nce_fx.quantizers import Quantizer

HISTORY = "history"
"""The key in ``gm.meta``."""


@dataclass(frozen=True)
class Step(Frozen):
    """One pass that changed a graph: ``Step("quantize", {"weight_bits": 2, ...}, "9f3c...")``."""

    name: str
    options: Mapping[str, Any] | None
    """The pass's options, and whatever it decided from the weights; ``None`` where they are not plain data."""
    graph: str
    """Fingerprint of the graph that came out."""
    source: str | None = None
    """``package.module:Class`` of a pass that is not nce-fx's own."""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The settings of every module of that graph, see `settings_of`; for this process only."""
    problem: str = ""
    """Why it has no options that could be written down."""


@dataclass(frozen=True)
class History(Frozen):
    """How a graph was traced, and the passes since, such as ``Step("resize", ...), Step("quantize", ...)``."""

    graph: str
    """Fingerprint of the graph as traced."""
    modes: Mapping[str, bool] = field(default_factory=dict)
    """Which parts of the model were in training mode then, see `training_modes`."""
    inputs: tuple[Any, ...] | None = None
    """The signature of what it was traced with (`nce_fx.signature`)."""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The settings of the modules of the graph as traced."""
    steps: tuple[Step, ...] = ()
    problem: str = ""
    """Why the graph cannot be made again by doing this again."""

    def __deepcopy__(self, memo: Any) -> "History":
        return self

    @property
    def result(self) -> str:
        """Fingerprint of the graph that the last step made."""
        return self.steps[-1].graph if self.steps else self.graph

    def then(self, step: Step) -> "History":
        """Return the history with one more step."""
        return replace(self, steps=(*self.steps, step), problem=self.problem or step.problem)

    def check(self, gm: GraphModule) -> None:
        """Return if the graph is the one that this history makes, and can be made again.

        Raises:
            ArtifactError: says which step cannot be repeated, or after which the graph was changed by hand.
        """
        problem = self.problem or _edited(self, gm)
        if problem:
            raise ArtifactError(problem)


def begin(gm: GraphModule, model: nn.Module) -> None:
    """Begin the history of a graph that was just traced from a model."""
    inputs = gm.meta.get("inputs")
    signature = None if inputs is None else tuple(inputs)
    gm.meta[HISTORY] = History(model_fingerprint(gm), training_modes(model), signature, settings_of(gm))


def traced_again(gm: GraphModule, before: GraphModule) -> None:
    """Write into the history of a graph that it was traced again from one before, at other inputs."""
    known, inputs = history_of(before), gm.meta.get("inputs")
    if not known.steps:
        begin(gm, gm)
    elif (graph := model_fingerprint(gm)) != known.result:
        problem = "" if inputs is not None else "the inputs of trace are not plain data: give tensors and numbers"
        options = {"inputs": inputs} if inputs is not None else None
        gm.meta[HISTORY] = continued(before).then(Step("trace", options, graph, None, settings_of(gm), problem))


def history_of(gm: GraphModule) -> History:
    """Return the history of a graph; of one that `nce_fx.trace` did not make, one that begins now."""
    known = gm.meta.get(HISTORY)
    if isinstance(known, History):
        return known
    return History(model_fingerprint(gm), training_modes(gm), None, settings_of(gm))


def continued(gm: GraphModule) -> History:
    """Return the history of a graph that a pass is about to change, which says if it was changed by hand before."""
    known = history_of(gm)
    problem = known.problem or _edited(known, gm)
    return replace(known, problem=problem) if problem else known


def _edited(history: History, gm: GraphModule) -> str:
    known = history.steps[-1].settings if history.steps else history.settings
    what = "the graph was"
    if model_fingerprint(gm) == history.result:
        settings = settings_of(gm)
        changed = sorted(path for path in known.keys() & settings.keys() if known[path] != settings[path])
        if not changed:
            return ""
        what = f"the settings of {changed[0]} were"
    last = f"after {history.steps[-1].name}" if history.steps else "after it was traced"
    return (
        f"{what} changed by hand {last}, which cannot be replayed: make the change in a pass of your own "
        "(nce_fx.pipeline.Pass)"
    )


def settings_of(gm: GraphModule) -> dict[str, str]:
    """Return what modules are set to, by path: ``{"bn1": "eps=1e-05, momentum=0.1, ..."}``.

    Of PyTorch's own modules that is every attribute of plain data; of quantizers, whose ranges are state, the bits.
    What modules of the user's own keep in attributes may be counters and caches, so it is not looked at.
    """
    found = {}
    for path, module in modules_of(gm):
        if isinstance(module, Quantizer):
            found[path] = f"bits={module.bits}, exact={module.exact}"
        elif path and type(module).__module__.startswith("torch.nn."):
            found[path] = ", ".join(f"{name}={value!r}" for name, value in plain_attributes(module))
    return found


def training_modes(module: nn.Module) -> dict[str, bool]:
    """Return whether a module is in training mode, and the paths of those in it whose mode is not their owner's.

    ``{"": True, "stem.bn": False}``: all of it trains but for one frozen BatchNorm.
    """
    modes: dict[str, bool] = {}
    training: dict[str, bool] = {}
    for path, part in modules_of(module):
        training[path] = part.training
        if not path or part.training != training[path.rpartition(".")[0]]:
            modes[path] = part.training
    return modes


def set_training_modes(module: nn.Module, modes: Mapping[str, bool]) -> None:
    """Set the modes that `training_modes` returned.

    Raises:
        ArtifactError: the module has no part at one of the paths.
    """
    for path, training in modes.items():
        try:
            (module_at(module, path) if path else module).train(training)
        except AttributeError as error:
            raise ArtifactError(f"the model has no module {path}: it is not the one that was saved") from error
