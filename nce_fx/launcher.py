"""What ``accelerate launch`` was asked for, which it tells the processes that it starts by their environment.

What is there is done, and the rest refused: accelerate itself would do a part of it, or nothing, and not say so.
"""

import os

from nce_fx.errors import InputError, TrainingError

_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed: --use_fsdp --fsdp_version 2 trains what does not fit one device",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: --use_fsdp --fsdp_version 2 trains what does not fit one device",
    "FSDP_OFFLOAD_PARAMS": "parameters in the host's memory (--fsdp_offload_params): start more processes instead",
}
"""The variables that say "true" -> what was asked for, and what to do."""


def shards_are_asked_for() -> bool:
    """Return whether each process shall hold a part of the weights.

    Raises:
        TrainingError: something was asked for that is not there.
    """
    for name, what in _REFUSED.items():
        if _is_true(name):
            raise TrainingError(f"accelerate launch asks for {what}")
    if not _is_true("ACCELERATE_USE_FSDP"):
        return False
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise TrainingError(
            f"accelerate launch asks for version {version} of FSDP, which takes the parameters that quantizers read"
            " out of a network: add --fsdp_version 2"
        )
    return True


def checkpoints_are_asked_for() -> bool:
    """Return whether activations shall be computed again in the backward pass, whatever the recipe says of it."""
    return _is_true("FSDP_ACTIVATION_CHECKPOINTING")


def check_launched(precision: str, accumulate: int, compiled: bool) -> None:
    """Check that the launcher asks for nothing that the recipe says otherwise.

    Args:
        precision: the recipe's ``precision``, as are ``accumulate`` and ``compiled``, its ``compile``.
        accumulate: parts of a batch.
        compiled: whether the model is compiled.

    Raises:
        InputError: both say something, and not the same.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise InputError(_of_the_recipe("--mixed_precision", asked, "precision", precision))
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts not in ("1", str(accumulate)):
        raise InputError(_of_the_recipe("--gradient_accumulation_steps", parts, "accumulate", accumulate))
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not compiled:
        raise InputError(_of_the_recipe("--dynamo_backend", backend, "compile", compiled))


def _of_the_recipe(option: str, asked: str, field: str, value: object) -> str:
    return f"accelerate launch says {option} {asked} and the recipe {field} {value}: say it in the recipe alone"


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
