"""`--verify-each` and `--print-after`: what is done between the passes of a pipeline."""

from collections.abc import Sequence

from torch.fx import GraphModule

from nce_fx.cli.terminal import Terminal
from nce_fx.errors import InputError
from nce_fx.nearest import nearest
from nce_fx.pipeline import Pass, PassResult
from nce_fx.pipeline.base import Between
from nce_fx.pipeline.verify import verify


def between_passes(
    passes: Sequence[Pass | type[Pass]], verify_each: bool, print_after: Sequence[str] | None, terminal: Terminal
) -> Between | None:
    """Return what was asked to be done between these passes.

    Raises:
        InputError: a pass that is to be printed after is not one of them.
    """
    # A pass is asked for by its name or its class, whatever module or file that was given with.
    asked = {name.rpartition(":")[2] for name in print_after or ()}
    known = {"all", *(name for step in passes for name in _names(step))}
    if asked - known:
        names, wrong = ", ".join(step.name for step in passes), min(asked - known)
        raise InputError(f"--print-after {wrong}: the passes are {names}; or all{nearest(wrong, known)}")

    def between(step: Pass, before: GraphModule, result: PassResult) -> None:
        if asked & {"all", *_names(step)}:
            changed = "" if result.modified else ", which changed nothing"
            terminal.notes.print(f"after {step.name}{changed}:", style="bold", markup=False)
            terminal.notes.print(result.graph_module.code.strip(), markup=False, highlight=False, soft_wrap=True)
        if verify_each:
            verify(step, before, result)

    return between if asked or verify_each else None


def _names(step: Pass | type[Pass]) -> tuple[str, str]:
    return step.name, (step if isinstance(step, type) else type(step)).__qualname__
