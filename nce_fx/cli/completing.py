"""Names that the command line takes: all of them by kind, and those of one kind as the shell completes them."""

from collections.abc import Callable, Mapping


def known_names() -> dict[str, Mapping[str, str]]:
    """Return everything that can be named by its kind, such as ``models``, with a line on each."""
    # Not imported above: options are declared with what completes them, and `--help` must not wait for torch.
    from nce_fx.data import FROM_PACKAGES, SOURCES
    from nce_fx.export.formats import FORMATS
    from nce_fx.models import MODELS
    from nce_fx.passes.analysis.sensitivity import METRICS
    from nce_fx.passes.by_name import PASSES
    from nce_fx.quantities import QUANTITIES
    from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
    from nce_fx.search import METHODS
    from nce_fx.tasks import LOSSES
    from nce_fx.tasks import METRICS as TASK_METRICS

    registries = (
        LOSSES,
        TASK_METRICS,
        MODELS,
        WEIGHT_QUANTIZERS,
        ACTIVATION_QUANTIZERS,
        METRICS,
        FORMATS,
        PASSES,
        QUANTITIES,
    )
    found: dict[str, Mapping[str, str]] = {registry.kind: registry.help() for registry in registries}
    found["search_methods"] = {name: method.help for name, method in METHODS.items()}
    found["data"] = {**SOURCES, **FROM_PACKAGES.help()}
    return found


def names_of(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """Return what completes an option that takes names of a kind; ``kinds`` are those of `known_names`.

    What is the user's own, a module or a folder, is left to the shell: of ``imagefolder:DIR`` it gives the beginning.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        every = known_names()
        names: Mapping[str, str] = dict.fromkeys(sorted(every), "") if kind == "kinds" else every[kind]
        begun = ((name.removesuffix("DIR"), says) for name, says in names.items() if ":call" not in name)
        return [(name, says) for name, says in begun if name.startswith(incomplete)]

    return complete


def one_of(*choices: str) -> Callable[[str], list[str]]:
    """Return what completes an option that takes one of a few words."""
    return lambda incomplete: [each for each in choices if each.startswith(incomplete)]
