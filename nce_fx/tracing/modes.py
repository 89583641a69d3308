"""The flag ``training`` of a model that is traced: a node where it decides, and what train() and eval() do to it.

A model is traced with its flag as a `Flag`, which says where it goes; where the model branches on it, it is traced in
both modes and the two graphs are joined: what they share is there once, what differs is chosen by `nce_fx.by_mode`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from nce_fx.by_mode import place_by_mode
from nce_fx.ops import Ops
from nce_fx.paths import modules_of
from nce_fx.tracing.preserved_state import Kept


class Flag(int):
    """The mode of a module that is being traced: as good as a bool where it is passed on; deciding on it is noted."""

    decided: list[int]

    def __new__(cls, training: bool, decided: list[int]) -> "Flag":
        """Make a flag; ``decided`` grows where somebody asks whether it is true."""
        flag = super().__new__(cls, training)
        flag.decided = decided
        return flag

    def __bool__(self) -> bool:
        self.decided.append(1)
        return self != 0


@contextmanager
def flags(following: Collection[nn.Module], decided: list[int], here: Callable[[], bool]) -> Iterator[None]:
    """Let ``training`` of modules that follow the mode be a `Flag` while ``here()`` is true."""

    def get(module: nn.Module) -> Any:
        training = module.__dict__["training"]
        return Flag(training, decided) if module in following and here() else training

    def put(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = bool(value)

    nn.Module.training = property(get, put)  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training


def place_flags(gm: GraphModule, ops: Ops) -> bool:
    """Make every flag in a graph follow the mode: of what has a module for it by that, else as a node of its own."""
    changed = False
    for node in list(gm.graph.nodes):
        found = _flags(node)
        if not found:
            continue
        changed = True
        module = module_by_mode(ops, node)
        if module is not None:
            _as_module(gm, node, module)
            continue
        with gm.graph.inserting_before(node):
            choice = place_by_mode(gm, False, True)
        node.args = map_aggregate(node.args, lambda v, c=choice: c if isinstance(v, Flag) else v)  # type: ignore
        node.kwargs = map_aggregate(node.kwargs, lambda v, c=choice: c if isinstance(v, Flag) else v)  # type: ignore
    return changed


def _flags(node: Node) -> list[Flag]:
    found: list[Flag] = []
    map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if isinstance(v, Flag) else None)
    return found


def module_by_mode(ops: Ops, node: Node) -> nn.Module | None:
    """Return the module that follows the mode as a call does, or would if its flag were no constant; else ``None``.

    There is one of dropouts, whose other options are numbers; a batch_norm needs its statistics too.
    """
    op = ops.of_call(node.target) if node.op == "call_function" else None
    if op is None or not op.by_mode or not op.modules:
        return None
    given = ops.arguments(node.target, node.args, node.kwargs)
    source, flag = given.pop("input", None), given.pop("training", None)
    follows = isinstance(source, Node) and (flag is False or isinstance(flag, Flag))
    plain = follows and all(isinstance(value, int | float) for value in given.values())
    return op.modules[0](**given) if plain else None


def _as_module(gm: GraphModule, node: Node, module: nn.Module) -> None:
    name = f"{node.name}_module"
    gm.add_submodule(name, module)
    source = node.args[0] if node.args else node.kwargs["input"]
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(name, (source,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)


@dataclass(frozen=True)
class Modes:
    """What train() and eval() do to the modules of a model."""

    evaluated: Mapping[nn.Module, bool]
    trained: Mapping[nn.Module, bool]
    frozen: frozenset[str]
    """Paths of modules that stay in evaluation mode when the model is trained."""

    @property
    def following(self) -> frozenset[nn.Module]:
        """The modules whose mode is the model's."""
        return frozenset(module for module, mode in self.trained.items() if mode != self.evaluated[module])

    def is_pure(self, model: nn.Module, training: bool) -> bool:
        """Whether a model is as train() or eval() leaves it."""
        modes = self.trained if training else self.evaluated
        return all(module.training == mode for module, mode in modes.items())


def modes_of(model: nn.Module, before: Kept) -> Modes:
    """Ask a model for the modes of its modules, as its own train() sets them."""
    modules = list(model.modules())
    if all(type(module).train is nn.Module.train and "train" not in vars(module) for module in modules):
        return Modes(dict.fromkeys(modules, False), dict.fromkeys(modules, True), frozenset())
    found = []
    for training in (False, True):
        try:
            model.train(training)
        except Exception:
            # Graphs of torch.export have one mode, and say so.
            found.append(dict.fromkeys(model.modules(), training))
        else:
            found.append({module: module.training for module in model.modules()})
        before.restore()
    frozen = frozenset(path for path, module in modules_of(model) if not found[1][module] and found[1][model])
    return Modes(found[0], found[1], frozen)
