"""Networks of which each process holds a part: PyTorch's FSDP2 (``fully_shard``), for what does not fit one device.

Weights are cut along their first axis, one part in each process, and so are their gradients and what the optimizer
remembers of them. A stretch of the graph has its weights whole while it runs, forwards and backwards, and gives them
back; meanwhile gradients are added up and cut. What has one axis or none, and what quantizers learn, is whole
everywhere: it is little, and ranges follow from whole weights.

accelerate's own way into FSDP2 is closed on CPUs, and wraps modules: the code of a graph reads weights past them.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nce_fx.copying import copy_model
from nce_fx.devices import device_of
from nce_fx.errors import InputError
from nce_fx.launcher import checkpoints_are_asked_for
from nce_fx.processes import Engine, all_reduce_sum, sum_gradients
from nce_fx.quantizers.base import Quantizer
from nce_fx.training.forward import in_stretches
from nce_fx.training.recipe import Recipe

M = TypeVar("M", bound=nn.Module)


def check_search(engine: Engine, recipe: Recipe, searched: Mapping[str, Any]) -> None:
    """Refuse what a search cannot train with.

    Args:
        engine: where it trains.
        recipe: how to train.
        searched: what a search says of itself; empty where the weights alone are trained.

    Raises:
        InputError: the option that cannot be, and why.
    """
    if not searched:
        return
    if engine.shards:
        raise InputError(
            "a search resizes the network that it trains, and shards cannot be resized: hold networks whole in every"
            " process (accelerate launch without --use_fsdp)"
        )
    if recipe.checkpoint_activations:
        raise InputError(
            "recipe: checkpoint_activations cuts a network in stretches, which a search resizes: set accumulate instead"
        )
    if recipe.compile and engine.processes > 1:
        raise InputError("recipe: compile is for one process where a search resizes what it trains: leave it out")


def sharded(
    model: nn.Module, engine: Engine, recipe: Recipe, *, whole_model: nn.Module | None = None, learns: bool = True
) -> nn.Module:
    """Return what is called in the place of a model of which each process keeps its part from here on.

    Args:
        model: called in the mode that it is in; the parameters of its modules become parts.
        engine: several processes.
        recipe: how to train.
        whole_model: the model that shares its parameters, where it is another, whose parameters become parts as well.
        learns: False for a teacher, whose weights are given back as soon as they were read.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(engine.device.type, (engine.processes,))
    weights = _weights(model)
    holders: dict[Tensor, dict[nn.Module, None]] = {weight: {} for weight in weights}
    for each in (model, whole_model or model):
        for module in each.modules():
            for parameter in module.parameters(recurse=False):
                if parameter in weights:
                    holders[parameter][module] = None

    def shard(unit: _Unit, own: Set[Tensor], **options: Any) -> None:
        # In the order of the model: every process must gather the same at once.
        kept = dict.fromkeys(holder for weight in weights if weight in own for holder in holders[weight])
        unit.holders = nn.ModuleList(kept)
        fully_shard(unit, mesh=mesh, ignored_params={each for each in unit.parameters() if each not in own}, **options)

    again = learns and (recipe.checkpoint_activations or checkpoints_are_asked_for())
    made = in_stretches(model, weights, engine, recipe, again=again, learns=learns)
    for name, own in made.stretches.items():
        unit = _Unit(made.whole.get_submodule(name))
        shard(unit, own, reshard_after_forward=True)
        setattr(made.whole, name, unit)
    shared = weights.keys() - set().union(*made.stretches.values())
    whole = _Unit(made.whole)
    shard(whole, shared, reshard_after_forward=None if learns else True)
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_part(tensor):
            tensor.data = tensor.data.to(engine.device)
    return whole


class _Unit(nn.Module):
    """What FSDP2 gathers the weights of at once: code, and the modules of the whole model that hold them too."""

    def __init__(self, code: nn.Module) -> None:
        super().__init__()
        self.code, self.holders = code, nn.ModuleList()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the code; what it returns lies in no weight's memory, which is given back, nor in another tensor's.

        Whoever wrote into a view would write past what FSDP2 hangs on it.
        """
        given_back = {each.untyped_storage().data_ptr() for each in self.parameters() if not is_part(each)}

        def kept(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            lies_in = value._is_view() or value.untyped_storage().data_ptr() in given_back
            return value.clone() if lies_in else value

        return tree_map(kept, self.code(*inputs, **named))


def _weights(model: nn.Module) -> dict[Tensor, None]:
    """What is cut: parameters of two axes and more that no quantizer learns, of one dtype, the largest one's."""
    found = {
        parameter: None
        for module in model.modules()
        if not isinstance(module, Quantizer)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 1 and parameter.is_floating_point() and parameter.numel()
    }
    largest = max(found, key=lambda weight: weight.numel(), default=None)
    return {weight: None for weight in found if largest is not None and weight.dtype == largest.dtype}


@contextmanager
def whole_weights(student: nn.Module) -> Iterator[None]:
    """Have the weights of a model in parts whole in every process, to be read; does nothing for any other model."""
    units: list[Any] = [module for module in student.modules() if isinstance(module, _Unit)]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def in_one_piece(model: nn.Module, original: M) -> M:
    """Return a copy of the model that was trained in parts, with what it has learned; called by every process.

    It is where the original is, which has its modules without what FSDP2 put into them.
    """
    result, device = copy_model(original), device_of(original)
    result.load_state_dict({name: whole(value).to(device) for name, value in model.state_dict().items()})
    return result


def is_part(tensor: Tensor) -> bool:
    """True of a tensor of which each process holds a part."""
    return hasattr(tensor, "full_tensor")  # a DTensor: importing its class takes a while


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, sharing its memory: the tensor itself, or its part."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, in every process; called by all of them."""
    if not is_part(tensor):
        return tensor
    sent = tensor.int() if tensor.dtype is torch.int16 else tensor  # gloo has no such numbers
    return sent.full_tensor().to(tensor.dtype)  # type: ignore[attr-defined, no-any-return]


def on_main(tensor: Tensor, engine: Engine) -> Tensor:
    """Return a tensor whole, of parts on the CPU and in the main process alone; called by all of them."""
    if not is_part(tensor):
        return tensor
    found = whole(tensor)
    return found.cpu() if engine.is_main else found.new_empty(0)


def placed(value: Tensor, like: Any) -> Tensor:
    """Return this process's part of a whole tensor, as another one is cut; the tensor itself where that is whole."""
    if not is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has the value, so none needs to send it.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def mean_of_whole(parameters: Iterable[Tensor], engine: Engine) -> None:
    """Replace the gradients of what every process holds whole by their means over all processes."""
    own = [parameter for parameter in parameters if parameter.grad is not None and not is_part(parameter)]
    sum_gradients(own)
    for parameter in own:
        assert parameter.grad is not None
        parameter.grad.div_(engine.processes)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients as one vector, whoever holds them."""
    parts = [local(gradient) for gradient in gradients if is_part(gradient)]
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if not is_part(gradient)])
    if not parts:
        return norm
    others = all_reduce_sum(nn.utils.get_total_norm(parts).square())
    return torch.sqrt(norm.to(others.device).square() + others)


def clip(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients of this norm down to a limit, in place."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
