"""Normalizations."""

from __future__ import annotations

import torch
from torch import nn, ones, rand, randn
from torch.nn.modules.batchnorm import _BatchNorm

from nce_fx.ops import output_shapes
from nce_fx.ops.op import Op
from nce_fx.ops.rules import affine, elementwise, mixing, weighted

aten = torch.ops.aten
_ATEN_BATCH = (
    "input, weight, bias, running_mean, running_var, training=False, momentum=0.1, eps=1e-5, cudnn_enabled=False"
)
_ATEN_INSTANCE = (
    "input, weight, bias, running_mean, running_var, use_input_stats=True, momentum=0.1, eps=1e-5, cudnn_enabled=False"
)

ROWS = (
    Op(
        name="batch_norm",
        kind="norm",
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm),
        signature="input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5",
        spellings=dict.fromkeys((torch.batch_norm, aten.batch_norm.default), _ATEN_BATCH),
        channels=weighted.batch_norm,
        catch="call",
        follows=("num_features",),
        shape=output_shapes.batch_norm,
        by_mode=True,
        affine=affine.batch_norm,
        example=lambda: (randn(2, 8, 5, 5), randn(8), rand(8) + 0.5, randn(8), randn(8)),
    ),
    Op(
        name="instance_norm",
        kind="norm",
        modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        not_held=("use_input_stats",),
        signature="input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, "
        "momentum=0.1, eps=1e-5",
        spellings=dict.fromkeys((torch.instance_norm, aten.instance_norm.default), _ATEN_INSTANCE),
        channels=weighted.batch_norm,
        catch="call",
        follows=("num_features",),
        example=lambda: (randn(2, 8, 5, 5), None, None, randn(8), randn(8)),
    ),
    Op(
        name="layer_norm",
        kind="norm",
        modules=(nn.LayerNorm,),
        signature="input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True",
        not_held=("cudnn_enable",),
        channels=weighted.layer_norm,
        catch="call",
        follows=("normalized_shape",),
        example=lambda: (randn(2, 8), (8,), randn(8), randn(8)),
    ),
    Op(
        name="rms_norm",
        kind="norm",
        modules=(nn.RMSNorm,),
        signature="input, normalized_shape, weight=None, eps=None",
        channels=weighted.rms_norm,
        catch="call",
        follows=("normalized_shape",),
        example=lambda: (randn(2, 8), (8,), randn(8)),
    ),
    Op(
        name="group_norm",
        kind="norm",
        modules=(nn.GroupNorm,),
        signature="input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True",
        not_held=("cudnn_enabled",),
        channels=weighted.group_norm,
        catch="call",
        follows=("num_groups", "num_channels"),
        example=lambda: (randn(2, 8, 5, 5), 4, randn(8), randn(8)),
    ),
    Op(
        name="local_response_norm",
        kind="norm",
        modules=(nn.LocalResponseNorm,),
        signature="input, size, alpha=1e-4, beta=0.75, k=1.0",
        channels=mixing.local_response_norm,
        catch="call",
        example=lambda: (randn(2, 8, 5, 5), 3),
    ),
    Op(
        name="normalize",
        kind="norm",
        signature="input, p=2.0, dim=1, eps=1e-12, out=None",
        channels=mixing.normalize,
        catch="call",
        root=True,
        example=lambda: (randn(2, 8),),
    ),
    Op(
        name="_weight_norm",
        kind="norm",
        signature="v, g, dim=0",
        channels=elementwise.weight_norm,
        catch="call",
        example=lambda: (randn(8, 3), ones(8, 1)),
    ),
)
