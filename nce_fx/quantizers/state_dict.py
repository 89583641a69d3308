"""Whether tensors fit a network, its quantizers among it, which need not have all of theirs."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from nce_fx.paths import unused_state
from nce_fx.quantizers.base import Quantizer


def fit_problem(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return in words why tensors do not fit a model's parameters and buffers, or ``None`` where they do."""
    own = model.state_dict()
    absent = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, Quantizer)
        for name in module.absent
    }
    if isinstance(model, GraphModule):
        # Files of earlier versions leave out what the forward does not use.
        absent.update(unused_state(model))
    missing = [name for name in own if name not in state and name not in absent]
    extra = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = []
    if other:
        shapes = f"{tuple(state[other[0]].shape)}, the model has {tuple(own[other[0]].shape)}"
        problems.append(f"{_some(other)}: the file has {shapes}")
    if missing:
        problems.append(f"missing {_some(missing)}")
    if extra:
        problems.append(f"not in the model {_some(extra)}")
    return "; ".join(problems) or None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
