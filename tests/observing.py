"""What the laws look at: outputs of any structure, layers of a graph found without the analysis, operations counted."""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from nce_fx.by_mode import ByMode, idle_in
from nce_fx.ops import OPS
from nce_fx.passes.transform.quantize.quantizer_nodes import computed_value

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTION_CALLS = {F.conv1d, F.conv2d, F.conv3d, *(getattr(torch.ops.aten, f"conv{n}d").default for n in (1, 2, 3))}
_LINEAR_CALLS = {F.linear, torch.ops.aten.linear.default}
_PRODUCTS = {operator.matmul, torch.matmul, torch.mm, torch.ops.aten.matmul.default, "matmul", "mm"}


def to_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Return a structure with its floating point tensors in another type."""
    return tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t, value)


def copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return copies of inputs, for a model that writes to what it is given."""
    return tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, inputs)  # type: ignore[no-any-return]


def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Return the leaves of the model's outputs, without gradients."""
    with torch.no_grad():
        return tree_flatten(model(*copied(inputs)))[0]


def state_of(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every tensor of a model."""
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}


def again(inputs: tuple[Any, ...], seed: int, batch: int | None = None) -> tuple[Any, ...]:
    """Return inputs of the same form with other values; with ``batch``, so many rows where the form has one."""
    generator = torch.Generator().manual_seed(seed + 1)

    def other(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dim():
            return value
        value = value if batch is None else value[torch.arange(batch) % len(value)]
        if not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    return tree_map(other, inputs)  # type: ignore[no-any-return]


def seeded(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Any], dict[str, torch.Tensor]] | None:
    """Return outputs and buffers after a run with a fixed seed; ``None`` where the model does not run."""
    torch.manual_seed(0)
    try:
        outputs = [value for value in run(model, tree_map(lambda v: v, inputs)) if isinstance(value, torch.Tensor)]
    except (RuntimeError, ValueError, IndexError):
        return None
    return outputs, dict(model.named_buffers())


def in_turn(
    model: nn.Module, training: bool, batches: Sequence[tuple[Any, ...]]
) -> list[tuple[list[Any], dict[str, torch.Tensor]] | None]:
    """Return what `seeded` does of each, one after another on a copy; what fails leaves no trace in those after it."""
    found: list[tuple[list[Any], dict[str, torch.Tensor]] | None] = []
    own = copy.deepcopy(model).train(training)
    for number, inputs in enumerate(batches):
        done = seeded(own, inputs)
        if done is None:
            own = copy.deepcopy(model).train(training)
            for earlier, before in zip(batches[:number], found, strict=True):
                if before is not None:
                    seeded(own, earlier)
        found.append(copy.deepcopy(done))
    return found


def difference(a: list[Any], b: list[Any]) -> float:
    """Return the largest difference as a share of the largest output."""
    assert len(a) == len(b), f"{len(a)} outputs became {len(b)}"
    worst, largest = 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape, f"an output of shape {tuple(x.shape)} became {tuple(y.shape)}"
        assert bool(x.isfinite().all()), "the original's output is not finite: the zoo model proves nothing"
        assert bool(y.isfinite().all()), "the output is not finite"
        if x.numel():
            worst = max(worst, float((x.double() - y.double()).abs().max()))
            largest = max(largest, float(x.double().abs().max()))
    assert largest > 0, "all outputs are zero: nothing was compared"
    return worst / largest


def counted(gm: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Return multiply-accumulates by PyTorch's own counter, and the parameters; fused kernels are taken apart."""
    with (
        warnings.catch_warnings(action="ignore"),
        FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        torch.enable_grad(),
        _Einsums(counter) as einsums,
    ):
        gm(*copied(inputs))
    return counter.get_total_flops() // 2 + einsums.uncounted, sum(p.numel() for p in gm.parameters())


class _Einsums(TorchFunctionMode):
    """Counts what PyTorch's counter leaves out: an einsum over one channel is computed as an elementwise product."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.uncounted = counter, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        einsum = func is torch.functional.einsum or func is torch.ops.aten.einsum.default
        operands = args[1] if einsum and isinstance(args[1], (tuple, list)) else args[1:]
        if einsum and len(operands) > 1 and self.counter.get_total_flops() == before:
            given, _, kept = args[0].replace(" ", "").partition("->")
            named = [_letters(part, x.dim()) for part, x in zip(given.split(","), operands, strict=True)]
            sizes = {k: n for part, x in zip(named, operands, strict=True) for k, n in zip(part, x.shape, strict=True)}
            if any(
                sum(letter in part for part in named) > 1 for letter in sizes if len(letter) == 1 and letter not in kept
            ):
                self.uncounted += math.prod(sizes.values())
        return result


def _letters(part: str, rank: int) -> list[str]:
    """Return a name for each axis of an operand of an einsum: an ellipsis stands for as many as are left."""
    before, dots, after = part.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{hidden - k}" for k in range(hidden)), *after]


def _bilinear_flops(x: Any, weight: Any, y: Any, *_: Any, **__: Any) -> int:
    """What PyTorch's counter does not know: every row meets the whole weight."""
    return int(2 * x[0] * torch.Size(weight).numel())


def _vector_flops(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return int(2 * torch.Size(matrix).numel())


_UNCOUNTED = {
    torch.ops.aten._trilinear: _bilinear_flops,
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten.addmv: lambda _, *shapes, **options: _vector_flops(*shapes, **options),
}


def loss_of(outputs: Any) -> torch.Tensor:
    """Return the mean squared distance of all outputs from fixed random targets."""
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for leaf in tree_flatten(outputs)[0]:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            target = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
            loss = loss + (leaf.double() - target).square().mean()
    return loss


def weight_node(node: Node) -> tuple[Node | None, str]:
    """Return the weight argument of a functional layer and the layer's kind, or nothing where it is none."""
    if node.op not in ("call_function", "call_method"):
        return None, ""
    if node.target in _CONVOLUTION_CALLS:
        kind = "convolution"
    elif node.target in _LINEAR_CALLS:
        kind = "linear"
    elif node.target in _PRODUCTS:
        kind = "product"
    else:
        return None, ""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return (weight if isinstance(weight, Node) else None), kind


def ancestors(node: Node | None) -> Iterator[str]:
    """Yield the paths of the parameters that a value is computed from; none where an input takes part."""
    pending, seen, paths = [node] if node is not None else [], set(), []
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op in ("placeholder", "call_module"):
            return
        if current.op == "get_attr":
            paths.append(str(current.target))
        pending.extend(current.all_input_nodes)
    yield from paths


def groups_argument(node: Node) -> int:
    value = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
    return value if isinstance(value, int) else 1


def layers(gm: GraphModule) -> dict[str, set[str]]:
    """Return every convolution and linear layer by its node, with the module or the parameters that hold its weight."""
    found: dict[str, set[str]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
                found[node.name] = {str(node.target)}
        weight, kind = weight_node(node)
        if kind in ("convolution", "linear"):
            paths = {path.removesuffix(".weight") for path in ancestors(weight)}
            if paths:
                found[node.name] = paths
    return found


def reading_axes(gm: GraphModule) -> set[tuple[str, int]]:
    """Return the parameter axes that are summed against input channels, found from the graph alone."""
    result: set[tuple[str, int]] = set()
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module, path = gm.get_submodule(str(node.target)), f"{node.target}.weight"
            if isinstance(module, CONVOLUTIONS) and module.groups == 1:
                result.add((path, 1))
            elif isinstance(module, TRANSPOSED) and module.groups == 1:
                result.add((path, 0))
            elif isinstance(module, nn.Linear):
                result.add((path, 1))
            elif isinstance(module, nn.RNNBase):
                result.update(
                    (f"{node.target}.{n}", 1) for n, _ in module.named_parameters() if n.startswith("weight_")
                )
        weight, kind = weight_node(node)
        if weight is None or (kind == "convolution" and groups_argument(node) != 1):
            continue
        dims = len(weight.meta["tensor_meta"].shape)
        axis = dims - 2 if kind == "product" else 1
        length = weight.meta["tensor_meta"].shape[axis]
        for path in ancestors(weight):
            shape = _tensor(gm, path).shape
            if len(shape) == dims and shape[axis] == length:
                result.add((path, axis))
            elif len(shape) == 2 and kind == "linear" and shape[0] == length:
                result.add((path, 0))
    result.update(_einsum_axes(gm))
    first = {id(_tensor(gm, path)): path for path, _ in sorted(result, reverse=True)}
    return result | {(first[id(_tensor(gm, path))], axis) for path, axis in result}


def materialize(gm: GraphModule) -> None:
    """Turn parametrized weights, and those that hooks compute, into plain ones, in place.

    Copies of a parametrized module share the class that was made for it, and removal would take its ``weight`` away.
    """
    for module in gm.modules():
        if parametrize.is_parametrized(module, "weight"):
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(module, "weight")
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            nn.utils.remove_weight_norm(module)
    # A direction of zeros has no length to be divided by; two layers may read one weight.
    norms = [node for node in gm.graph.nodes if OPS.of_call(node.target) is OPS["_weight_norm"]]
    for node, value in [(node, computed_value(gm, node)) for node in norms]:
        direction = node.args[0]
        if isinstance(direction, Node) and direction.op == "get_attr":
            _tensor(gm, str(direction.target)).data.copy_(value)
            node.replace_all_uses_with(direction)
            gm.recompile()
    for node in list(gm.graph.nodes):
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if node.op == "call_function" and "conv" in str(node.target) and isinstance(weight, Node):
            _store(gm, node, weight)


def _store(gm: GraphModule, reader: Node, weight: Node) -> None:
    """Put a weight that the graph computes in the place of the one parameter that has its shape."""
    chain, pending = {weight}, [weight]
    while pending:
        for node in pending.pop().all_input_nodes:
            pending += [node] if node not in chain else []
            chain.add(node)
    if weight.op == "get_attr" or any(node.op == "placeholder" for node in chain):
        return
    value = computed_value(gm, weight)
    held = {node: computed_value(gm, node) for node in chain if node.op == "get_attr"}
    same = [n for n, tensor in held.items() if isinstance(tensor, torch.Tensor) and tensor.shape == value.shape]
    if len(same) == 1 and all(user in chain for user in same[0].users):
        held[same[0]].data.copy_(value)
        reader.update_arg(1, same[0])
        gm.recompile()


def _einsum_axes(gm: GraphModule) -> Iterator[tuple[str, int]]:
    for node in gm.graph.nodes:
        if node.target is torch.einsum:
            inputs, _, result = str(node.args[0]).replace(" ", "").partition("->")
            for letters, operand in zip(inputs.split(","), node.args[1:], strict=True):
                if isinstance(operand, Node) and operand.op == "get_attr":
                    yield from ((str(operand.target), k) for k, letter in enumerate(letters) if letter not in result)


def _tensor(gm: GraphModule, path: str) -> torch.Tensor:
    owner, _, name = path.rpartition(".")
    tensor = getattr(gm.get_submodule(owner), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def producing_nodes(gm: GraphModule, producers: Iterable[str]) -> dict[str, int]:
    """Return the names of the nodes that use these producers, with the axis of their output channels."""
    wanted, result = set(producers), {}
    for node in gm.graph.nodes:
        if node.op == "call_module" and str(node.target) in wanted:
            module = gm.get_submodule(str(node.target))
            if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
                result[node.name] = 1
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                result[node.name] = -1
        weight, kind = weight_node(node)
        if weight is not None and weight.op == "get_attr" and str(weight.target).removesuffix(".weight") in wanted:
            result[node.name] = 1 if kind == "convolution" else -1
    return result


class Watch(Interpreter):
    """Runs a graph and keeps the values of some nodes, channels first, with their gradients after ``backward``."""

    def __init__(self, gm: GraphModule, axes: dict[str, int], alike: tuple[int, int] | None = None) -> None:
        super().__init__(gm)
        self.axes = axes
        self.alike = alike
        """Two channels of every watched node, the second of which is given what the first has."""
        self.values: dict[str, torch.Tensor] = {}
        self.seen: dict[str, torch.Tensor] = {}
        """The values as they were: what comes later may write into them."""
        self.given: dict[str, tuple[Any, Any]] = {}
        """What the nodes were given, parameters themselves and copies of all else."""
        self.outputs: Any = None

    def run_node(self, n: Node) -> Any:
        if n.name in self.axes:
            self.given[n.name] = tree_map(_kept, self.fetch_args_kwargs_from_env(n))
        value = super().run_node(n)
        if n.name in self.axes:
            if self.alike is not None:
                order = torch.arange(value.shape[self.axes[n.name]])
                order[self.alike[1]] = self.alike[0]
                value = value.index_select(self.axes[n.name], order)
            if value.requires_grad:
                value.retain_grad()
            self.values[n.name] = value
            self.seen[n.name] = value.detach().clone()
        return value

    def channels(self, name: str) -> torch.Tensor:
        return self.seen[name].movedim(self.axes[name], 0).flatten(1)

    def again(self, name: str) -> torch.Tensor:
        """Return what a node makes now, by its own parameters, of what it was given then; channels first."""
        node = next(n for n in self.graph.nodes if n.name == name)
        with torch.no_grad():
            now = getattr(self, node.op)(node.target, *self.given[name])
        assert isinstance(now, torch.Tensor)
        return now.movedim(self.axes[name], 0).flatten(1)

    def gradients(self, name: str) -> torch.Tensor:
        value = self.values[name]
        gradient = value.grad if value.grad is not None else torch.zeros_like(value)
        return gradient.movedim(self.axes[name], 0).flatten(1)


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) and not value.is_leaf else value


def watched(
    gm: GraphModule, inputs: tuple[Any, ...], axes: dict[str, int], alike: tuple[int, int] | None = None
) -> Watch:
    """Run what the graph's mode runs, once, and return what was seen of it.

    Of two channels that are ``alike`` the second is given the first.
    """
    watch = Watch(gm, axes, alike)
    training = next((choice.training for choice in gm.modules() if isinstance(choice, ByMode)), gm.training)
    watch.outputs = watch.run(*copied(inputs), initial_env=idle_in(gm, training))
    return watch


def in_training(gm: GraphModule) -> GraphModule:
    """Return a copy in training mode."""
    return copy.deepcopy(gm).train()


def without_dropout(gm: GraphModule, inputs: tuple[Any, ...]) -> GraphModule:
    """Return a copy in training mode in which nothing is drawn anew in every run: no dropout, no stochastic depth.

    What depends on the mode is as in training, too, unless numbers are drawn there.
    """
    result = in_training(gm)
    for module in result.modules():
        if not (module._modules or module._parameters or module._buffers or isinstance(module, ByMode)):
            module.eval()
    state = torch.get_rng_state()
    copy.deepcopy(result)(*copied(tree_map(_kept, inputs)))
    if not torch.equal(torch.get_rng_state(), state):
        torch.set_rng_state(state)
        for module in result.modules():
            if isinstance(module, ByMode):
                module.eval()
    return result
