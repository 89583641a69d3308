"""What a model holds and this forward does not use stays where it was, so that ``state_dict`` keeps its keys."""

from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from nce_fx.paths import modules_of


def keep_unused(gm: GraphModule, model: nn.Module) -> None:
    """Give a traced graph the parameters and kept buffers of its model that it holds nothing of the name of.

    Of layers that are not used only these are kept: nothing calls them.
    """
    known = gm.state_dict(keep_vars=True).keys()
    for path, module in modules_of(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            full = f"{path}.{name}" if path else name
            if tensor is None or is_lazy(tensor) or full in known or name in module._non_persistent_buffers_set:
                continue
            owner = _made(gm, path)
            group: dict[str, Any] = owner._parameters if name in module._parameters else owner._buffers
            group.setdefault(name, tensor)


def _made(owner: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, with plain ones where there is none."""
    for name in path.split(".") if path else ():
        if owner._modules.get(name) is None:
            owner.add_module(name, nn.Module())
        owner = owner._modules[name]  # type: ignore[assignment]
    return owner
