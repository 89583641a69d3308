"""Normalizations."""

import torch
from torch import nn, ones, rand, randn
from torch.nn.modules.batchnorm import _BatchNorm

from nce_fx.ops import output_shapes
from nce_fx.ops.op import family
from nce_fx.ops.rules import affine, elementwise, mixing, weighted

aten = torch.ops.aten
_ATEN_BATCH = (
    "input, weight, bias, running_mean, running_var, training=False, momentum=0.1, eps=1e-5, cudnn_enabled=False"
)
_ATEN_INSTANCE = (
    "input, weight, bias, running_mean, running_var, use_input_stats=True, momentum=0.1, eps=1e-5, cudnn_enabled=False"
)

_norm = family(kind="norm", catch="call")

ROWS = (
    _norm(
        "batch_norm",
        weighted.batch_norm,
        "input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5",
        lambda: (randn(2, 8, 5, 5), randn(8), rand(8) + 0.5, randn(8), randn(8)),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm),
        spellings=dict.fromkeys((torch.batch_norm, aten.batch_norm.default), _ATEN_BATCH),
        follows=("num_features",),
        shape=output_shapes.batch_norm,
        by_mode=True,
        affine=affine.batch_norm,
    ),
    _norm(
        "instance_norm",
        weighted.batch_norm,
        "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, "
        "eps=1e-5",
        lambda: (randn(2, 8, 5, 5), None, None, randn(8), randn(8)),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        not_held=("use_input_stats",),
        spellings=dict.fromkeys((torch.instance_norm, aten.instance_norm.default), _ATEN_INSTANCE),
        follows=("num_features",),
    ),
    _norm(
        "layer_norm",
        weighted.layer_norm,
        "input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True",
        lambda: (randn(2, 8), (8,), randn(8), randn(8)),
        nn.LayerNorm,
        not_held=("cudnn_enable",),
        follows=("normalized_shape",),
    ),
    _norm(
        "rms_norm",
        weighted.rms_norm,
        "input, normalized_shape, weight=None, eps=None",
        lambda: (randn(2, 8), (8,), randn(8)),
        nn.RMSNorm,
        follows=("normalized_shape",),
    ),
    _norm(
        "group_norm",
        weighted.group_norm,
        "input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True",
        lambda: (randn(2, 8, 5, 5), 4, randn(8), randn(8)),
        nn.GroupNorm,
        not_held=("cudnn_enabled",),
        follows=("num_groups", "num_channels"),
    ),
    _norm(
        "local_response_norm",
        mixing.local_response_norm,
        "input, size, alpha=1e-4, beta=0.75, k=1.0",
        lambda: (randn(2, 8, 5, 5), 3),
        nn.LocalResponseNorm,
    ),
    _norm("normalize", mixing.normalize, "input, p=2.0, dim=1, eps=1e-12, out=None", lambda: (randn(2, 8),), root=True),
    _norm("_weight_norm", elementwise.weight_norm, "v, g, dim=0", lambda: (randn(8, 3), ones(8, 1))),
)
