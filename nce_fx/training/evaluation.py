"""How often a model is right on data it was not trained on."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from nce_fx.devices import device_of, to_device
from nce_fx.errors import TrainingError
from nce_fx.tracing.exported import evaluating
from nce_fx.training.batches import Data, batch_length, batches_of
from nce_fx.training.determinism import deterministic
from nce_fx.training.engine import Engine, all_reduce_sum, call, start_engine
from nce_fx.training.loss import count_correct, logits_of


def evaluate(model: nn.Module, data: Data, batch_size: int = 256, *, split: str = "test") -> float:
    """Return the share of a split's samples whose highest score is at their class, in [0, 1].

    The model is left as it was (its mode, its device, its statistics), and so are the global random generators. A copy
    moves to the GPU where there is one. Under ``torchrun`` the processes share the work, and each returns the answer.

    Raises:
        TrainingError: the split has no samples, or the model returns no scores.
    """
    engine = start_engine()
    if device_of(model).type != engine.device.type:
        model = copy.deepcopy(model).to(engine.device)
    with deterministic(engine.device):
        return accuracy_of(model, data, batch_size, engine, split=split)


def accuracy_of(model: nn.Module, data: Data, batch_size: int, engine: Engine, *, split: str = "test") -> float:
    """Return what ``evaluate`` does, for a model that is on the engine's device."""
    counts = torch.zeros(2, dtype=torch.float64, device=engine.device)
    with evaluating(model), torch.no_grad():
        for batch in _shares(data, batch_size, engine, split):
            inputs, target = to_device(batch, engine.device)
            correct = count_correct(logits_of(call(model, inputs)), target)
            counts += torch.stack([correct.double(), correct.new_tensor(batch_length(batch)).double()])
    correct_samples, samples = all_reduce_sum(counts).tolist()
    if not samples:
        raise TrainingError(f"the {split} split has no samples to evaluate on")
    return float(correct_samples / samples)


def _shares(data: Data, batch_size: int, engine: Engine, split: str) -> Iterator[object]:
    loader = data.loader(split, batch_size=batch_size, seed=0, epoch=0, shuffle=False)
    return batches_of(loader, engine, drop_empty=True)
