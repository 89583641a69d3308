"""The parts of a model that can be traced where the whole cannot: what the refusal names."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nce_fx.ops import Ops
from nce_fx.tracing.inputs import Inputs, bind_inputs
from nce_fx.tracing.modes import modes_of
from nce_fx.tracing.preserved_state import kept, untouched, values_untouched
from nce_fx.tracing.symbolic import symbolic_graph

_MOST = 64
"""So many modules are tried."""


def traceable_parts(model: nn.Module, inputs: Inputs, ops: Ops) -> list[str]:
    """Return the largest modules that can be traced alone, with their share: ``["backbone (93 % of the parameters)"]``.

    None where the model does not run. A module is tried as it is first called; those inside of one that can be are not.
    """
    called: dict[str, Any] = {}
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        called.setdefault(names[module], (args, kwargs))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in names]
    try:
        with untouched(model), values_untouched(model), torch.no_grad():
            model.eval()
            model(*inputs.args, **inputs.kwargs)
    except Exception:
        called.clear()
    finally:
        for handle in handles:
            handle.remove()
    whole = sum(parameter.numel() for parameter in model.parameters())
    found = {}
    for name in _largest(model, called, ops):
        own = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        found[name] = own / max(whole, 1)
    largest = sorted(found, key=lambda name: -found[name])
    return [f"{name} ({found[name]:.0%} of the parameters)" for name in largest if found[name] >= 0.005][:4]


def _largest(model: nn.Module, called: dict[str, Any], ops: Ops) -> Iterator[str]:
    ahead = [name for name, _ in model.named_children()]
    for _ in range(_MOST):
        if not ahead:
            return
        name = ahead.pop(0)
        module = model.get_submodule(name)
        if name in called and _is_traceable(module, called[name], ops):
            yield name
        else:
            ahead += [f"{name}.{inner}" for inner, _ in module.named_children()]


def _is_traceable(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], ops: Ops) -> bool:
    args, kwargs = call
    try:
        given: Any = inspect.signature(module.forward).bind(*args, **kwargs).arguments if kwargs else args
        with untouched(module) as before:
            symbolic_graph(module, bind_inputs(module, given), kept(module), modes_of(module, before).following, ops)
    except Exception:
        return False
    return True
