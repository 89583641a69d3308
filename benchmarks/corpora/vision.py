"""Public vision models as a test corpus: how to build each one small, and how to give it weights that hide nothing.

Nothing is downloaded: every model starts from random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from benchmarks.families import TIMM, TRANSFORMERS, transformers_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

import nce_fx
import tests.torchvision_operators  # noqa: F401

CORPORA = ("torchvision", "timm", "transformers", "second")

_SIDE = {"inception_v3": 96, "inception_v3 with auxiliary heads": 299, "maxvit_t": 224, "alexnet": 96}
"""Torchvision classifiers that do not take images of 64 x 64."""
_CLIP = (8, 64, 64)
"""Frames and sides of the clips of video models."""


@dataclass(frozen=True)
class Entry:
    """One model of a corpus."""

    corpus: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    training: bool = False
    """Trace in training mode: auxiliary heads exist only there. Compared in eval mode all the same."""
    trained: bool = True
    """Hold it to law 2: a step of training in float64 takes 22 GB where a clip has 25,000 tokens."""
    laws: tuple[str, ...] = ("5", "3", "2")
    """Which laws it is held to beside 1 and 6, in this order."""
    up_to: int = 50_000_000
    """Laws beside 1, 3, 5 and 6 are asked of models of so many parameters."""


def noise(*shape: int) -> torch.Tensor:
    """Return the same random tensor on every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float32)


def corpus(name: str) -> Iterator[Entry]:
    """Yield the models of a corpus by its name (see ``CORPORA``)."""
    if name == "second":
        from benchmarks.second_corpus import second_models

        return second_models()
    return {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}[name]()


def load(name: str) -> None:
    """Import what the models of a corpus need, so that no model is charged for it."""
    import scipy.interpolate  # noqa: F401  (the cost analysis does)

    if name == "transformers":
        transformers_model("vit")
    if name == "second":
        from benchmarks import second_corpus

        second_corpus.load()
    nce_fx.analyze_cost(nce_fx.trace(_Countdown().eval(), (torch.zeros(1, 2),)))


class _Countdown(nn.Module):
    """A model that only torch.export takes, which imports much when it is first called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] > 1 else -x


def torchvision_models() -> Iterator[Entry]:
    """Yield every model that torchvision builds: classification, segmentation, video, detection, optical flow."""
    from torchvision import models

    for name in models.list_models(models):
        side = _SIDE.get(name, 64)
        side = 56 if name == "vit_h_14" else side
        options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):
            options = {"init_weights": False}
            with_heads = f"{name} with auxiliary heads"
            larger = _SIDE.get(with_heads, 64)
            yield _torchvision(with_heads, (2, 3, larger, larger), training=True, **options)
            options = {**options, "aux_logits": False}
        yield _torchvision(name, (2, 3, side, side), **options)
    for name in models.list_models(models.segmentation):
        yield _torchvision(name, (2, 3, 64, 64), weights_backbone=None, aux_loss=None if "lraspp" in name else True)
    for name in models.list_models(models.video):
        clip = (1, 3, 16, 224, 224) if name.startswith(("mvit", "s3d")) else (1, 3, *_CLIP)
        if name.startswith("mvit"):
            yield Entry("torchvision", name, partial(_small_mvit, name), lambda: (noise(1, 3, *_CLIP),))
            yield replace(_torchvision(name, clip), name=f"{name}, 16 frames of 224 x 224", trained=False)
        else:
            yield _torchvision(name, clip)
    for name in models.list_models(models.detection):
        side = 320 if "320" in name else 300 if "300" in name else 128
        yield _detection(name, side)
        yield _detection(name, side, parts=True)
    for name in models.list_models(models.optical_flow):
        yield _torchvision(name, (1, 3, 128, 128), (1, 3, 128, 128))


def _torchvision(name: str, *shapes: tuple[int, ...], training: bool = False, **options: Any) -> Entry:
    from torchvision import models

    given = {key: value for key, value in options.items() if value is not None or key == "weights_backbone"}
    return Entry(
        "torchvision",
        name,
        lambda: models.get_model(name.split()[0], weights=None, **given),
        lambda: tuple(noise(*shape) for shape in shapes),
        training,
    )


def _small_mvit(name: str) -> nn.Module:
    """Build an MViT for small clips, which its builders have no argument for; only its position tables differ."""
    from torchvision import models
    from torchvision.models.video import mvit

    frames, *side = _CLIP
    usual = mvit._mvit
    small = {"spatial_size": tuple(side), "temporal_size": frames}
    with mock.patch.object(mvit, "_mvit", lambda **options: usual(**{**options, **small})):
        model: nn.Module = models.get_model(name, weights=None)
    return model


def _detection(name: str, side: int, parts: bool = False) -> Entry:
    from torchvision import models

    def build() -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, weights_backbone=None)
        return DetectionLayers(model) if parts else model

    if parts:
        return Entry("torchvision", f"{name}, backbone and heads", build, lambda: (noise(2, 3, side, side),))
    return Entry("torchvision", name, build, lambda: ([noise(3, side, side).sigmoid()],))


class DetectionLayers(nn.Module):
    """Every layer of a detector, without what picks boxes by their values: crops are of the whole image here."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head if hasattr(detector, "head") else detector.rpn.head
        self.regions = getattr(detector, "roi_heads", None)

    def forward(self, images: torch.Tensor) -> Any:
        features = list(self.backbone(images).values())
        found = [self.head(features)]
        if self.regions is not None:
            crops = [nn.functional.adaptive_avg_pool2d(features[0], side) for side in (7, 14)]
            found.append(self.regions.box_predictor(self.regions.box_head(crops[0])))
            for kind in ("mask", "keypoint"):
                if getattr(self.regions, f"{kind}_head", None) is not None:
                    head, predictor = (getattr(self.regions, f"{kind}_{part}") for part in ("head", "predictor"))
                    found.append(predictor(head(crops[1])))
        return found


def timm_models() -> Iterator[Entry]:
    """Yield a small model of every module of timm."""
    import timm

    for name, (side, options) in TIMM.items():
        yield Entry(
            "timm",
            name,
            lambda name=name, options=options: timm.create_model(name, **options),
            lambda side=side: (noise(2, 3, side, side),),
        )


def transformers_models() -> Iterator[Entry]:
    """Yield one image classifier per family of transformers, with a small random configuration."""
    for family in TRANSFORMERS:
        yield Entry(
            "transformers", family, lambda family=family: transformers_model(family), lambda: (noise(2, 3, 64, 64),)
        )


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and running statistic anew, in place: zero heads and tiny layer scales hide errors.

    Weights of two or more axes keep the scale of activations through a ReLU; scales stay away from zero; running
    statistics are then set by ``calibrate``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.dim() > 1:
                parameter.copy_(drawn * (2 / max(1, parameter.numel() // max(1, parameter.shape[0]))) ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * drawn)
            else:
                parameter.copy_(drawn.sign() * (0.3 + 0.5 * drawn.abs()))
    return model


def calibrate(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> None:
    """Set every BatchNorm's running statistics near those of what reaches it, in order: activations keep their scale.

    They are jittered as they are set, so that what comes after sees the values that it will see.
    """
    generator = torch.Generator().manual_seed(seed)

    def settle(norm: nn.Module, args: tuple[Any, ...]) -> None:
        channels = args[0].movedim(1, 0).flatten(1)
        mean, variance = channels.mean(1), channels.var(1, correction=0).clamp(min=1e-2)
        shift, spread = torch.randn(mean.shape, generator=generator), torch.rand(mean.shape, generator=generator)
        norm.get_buffer("running_mean").copy_(mean + 0.2 * variance.sqrt() * shift)
        norm.get_buffer("running_var").copy_(variance * (0.5 + spread))

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    was_training = model.training
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    model.train(was_training)


def amplification(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return how much larger a relative change of the inputs is in the outputs: what becomes of a rounding."""
    change = 1e3 * torch.finfo(next(model.parameters()).dtype).eps
    other, shaken = model, _shaken(inputs, change)
    if not any(value.is_floating_point() for value in pytree.tree_leaves(inputs)):
        # Of ids nothing can be moved a little: the tables that they are looked up in are.
        other = copy.deepcopy(model)
        tables = {k: p for k, p in other.named_parameters() if p.dim() > 1}
        moved = _shaken(tuple(p.detach() for p in tables.values()), change)
        other.load_state_dict(dict(zip(tables, moved, strict=True)), strict=False)
    with torch.no_grad():
        expected, got = leaves(model(*inputs)), leaves(other(*shaken))
    return max(
        float((a - b).abs().max()) / (float(a.abs().max()) or 1.0) / change
        for a, b in zip(expected, got, strict=True)
        if a.numel()
    )


def _shaken(inputs: tuple[Any, ...], change: float) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)

    def moved(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        return value * (1 + change * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.dtype))

    return pytree.tree_map(moved, inputs)


def calm(model: nn.Module, inputs: tuple[Any, ...], allowed: float) -> float:
    """Calibrate, and return how much a model then amplifies roundings, at most ``allowed`` times where that can be had.

    Deep models with drawn weights can be chaotic: a rounding grows tenfold in each block, and the outputs of two
    equal models agree in no digit. Halving the scales of norms and branches calms them; no weight becomes invisible.
    """
    for _ in range(8):
        calibrate(model, inputs)
        found = amplification(model, inputs)
        if found <= allowed:
            break
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and not name.endswith("bias"):
                    parameter.mul_(0.5)
    return found


def leaves(value: Any) -> list[torch.Tensor]:
    """Return every floating point tensor of a model's output, in order."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [leaf for leaf in pytree.tree_leaves(value) if torch.is_tensor(leaf) and leaf.is_floating_point()]
