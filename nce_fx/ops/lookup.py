"""Tables that rows are looked up in."""

import torch
from torch import nn, randint, randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, Op
from nce_fx.ops.rules import weighted

aten = torch.ops.aten

ROWS = (
    Op(
        name="embedding",
        kind="lookup",
        modules=(nn.Embedding,),
        signature="input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, "
        "sparse=False",
        spellings=dict.fromkeys(
            (torch.embedding, aten.embedding.default),
            "weight, input, padding_idx=-1, scale_grad_by_freq=False, sparse=False",
        ),
        channels=weighted.embedding,
        catch="call",
        follows=("embedding_dim",),
        macs=work.embedding,
        example=lambda: (randint(0, 5, (2, 3)), randn(5, 8)),
    ),
    Op(
        name="nn.EmbeddingBag",
        kind="lookup",
        modules=(nn.EmbeddingBag,),
        signature="input, offsets=None, per_sample_weights=None",
        channels=Absent("a sum of rows is no channel rule yet"),
        macs=work.embedding,
        example=lambda: (randint(0, 5, (2, 3)),),
    ),
)
