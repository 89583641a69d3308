"""Recurrent layers and their cells."""

from __future__ import annotations

from torch import nn, randn

from nce_fx.ops import work
from nce_fx.ops.op import NOTHING, Absent, Op, same_order
from nce_fx.ops.rules import weighted

_FUNCTION = "input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first"

ROWS = (
    *(
        Op(
            name=name,
            kind="recurrent",
            modules=modules,
            signature=_FUNCTION,
            channels=weighted.recurrent,
            catch="module",
            follows=("input_size",),
            macs=work.recurrent,
            spellings=same_order("rnn_tanh", "rnn_relu") if name == "rnn" else NOTHING,
            example=lambda: (randn(5, 2, 8),),
        )
        for name, modules in (
            ("lstm", (nn.LSTM,)),
            ("gru", (nn.GRU,)),
            ("rnn", (nn.RNN,)),
        )
    ),
    *(
        Op(
            name=name,
            kind="recurrent",
            modules=modules,
            signature="input, hx, w_ih, w_hh, b_ih=None, b_hh=None",
            channels=Absent("its gates keep their width, and so do the channels that it reads"),
            macs=work.recurrent,
            spellings=same_order("rnn_tanh_cell", "rnn_relu_cell") if name == "rnn_cell" else NOTHING,
            example=lambda: (randn(2, 8),),
        )
        for name, modules in (
            ("lstm_cell", (nn.LSTMCell,)),
            ("gru_cell", (nn.GRUCell,)),
            ("rnn_cell", (nn.RNNCell,)),
        )
    ),
)
