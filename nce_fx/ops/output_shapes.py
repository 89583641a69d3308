"""Shapes of what operations make, where running them on tensors without values takes long and shows no more.

A rule takes the module, or ``None`` for a function, and the arguments; it returns a tensor without values, or ``None``
where the operation had better be run.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Shape = Callable[[Any, tuple[Any, ...]], Tensor | None]


def same(module: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Of a module that changes each element alone: its input's."""
    return args[0] if module is not None and len(args) == 1 and args[0].is_floating_point() else None


def arithmetic(module: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Of two tensors that are alike: theirs."""
    plain = len(args) == 2 and all(type(x) is Tensor and x.is_meta and x.is_contiguous() for x in args)
    if not plain or not args[0].is_floating_point() or args[0].shape != args[1].shape or args[0].dtype != args[1].dtype:
        return None
    result: Tensor = args[0].new_empty(args[0].shape)
    return result


def batch_norm(module: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Of its input, whose channels are as many as its statistics.

    Raises:
        RuntimeError: they are not.
    """
    x: Tensor = args[0]
    if module is None:
        return x if x.is_meta else None
    module._check_input_dim(x)
    held = (module.running_mean, module.running_var, module.weight, module.bias)
    if any(t is not None and t.shape != (x.shape[1],) for t in held) or x.shape[1] != module.num_features:
        raise RuntimeError(f"it expects {module.num_features} channels, got {x.shape[1]}")
    return x


def linear(module: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Of rows that are as long as the module's."""
    x = args[0]
    if not _plain(module, args) or not x.dim() or module.weight.shape != (module.out_features, x.shape[-1]):
        return None
    made: Tensor = x.new_empty((*x.shape[:-1], module.out_features))
    return made if module.in_features == x.shape[-1] else None


def convolution(axes: int) -> Shape:
    """Return the rule of a convolution over so many axes."""

    def shape(module: Any, args: tuple[Any, ...]) -> Tensor | None:
        x = args[0]
        if not _plain(module, args) or x.dim() != axes + 2 or module.in_channels != x.shape[1]:
            return None
        if module.weight.shape != (module.out_channels, x.shape[1] // module.groups, *module.kernel_size):
            return None
        rows = convolved(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation)
        if min(rows) <= 0:
            return None
        made: Tensor = x.new_empty((x.shape[0], module.out_channels, *rows))
        return made

    return shape


def adaptive(axes: int) -> Shape:
    """Return the rule of a module that averages over as many places along so many axes as it is told."""

    def shape(module: Any, args: tuple[Any, ...]) -> Tensor | None:
        x = args[0]
        if module is None or len(args) != 1 or not x.is_meta or not x.is_contiguous() or x.dim() - axes not in (1, 2):
            return None
        sizes = zip(x.shape[-axes:], each(module.output_size, axes), strict=True)
        made: Tensor = x.new_empty((*x.shape[:-axes], *(old if new is None else new for old, new in sizes)))
        return made

    return shape


def _plain(module: Any, args: tuple[Any, ...]) -> bool:
    """Whether a module is given one tensor without values, of its weight's type and laid out in order."""
    x = args[0]
    plain = module is not None and len(args) == 1 and isinstance(x, Tensor) and x.is_meta and x.is_contiguous()
    return plain and bool(x.dtype == module.weight.dtype)


def convolved(
    sizes: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any = 1
) -> tuple[int, ...]:
    """Return the lengths that axes have after a convolution along them; options are numbers or one for each axis."""
    if padding == "same":
        return tuple(sizes)
    around = each(0 if padding == "valid" else padding, len(sizes))
    options = (kernel, each(stride, len(sizes)), around, each(dilation, len(sizes)))
    return tuple(
        (size + 2 * beside - spread * (taps - 1) - 1) // step + 1
        for size, taps, step, beside, spread in zip(sizes, *options, strict=True)
    )


def each(value: Any, axes: int) -> Sequence[int]:
    """Return an option as one number for each axis."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * axes if len(values) == 1 else values
