"""Recurrent layers and their cells."""

from torch import nn, randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import weighted

_layer = family(
    kind="recurrent",
    channels=weighted.recurrent,
    signature="input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first",
    catch="module",
    follows=("input_size",),
    macs=work.recurrent,
    example=lambda: (randn(5, 2, 8),),
)
_cell = family(
    kind="recurrent",
    channels=Absent("its gates keep their width, and so do the channels that it reads"),
    signature="input, hx, w_ih, w_hh, b_ih=None, b_hh=None",
    macs=work.recurrent,
    example=lambda: (randn(2, 8),),
)

ROWS = (
    _layer("lstm", nn.LSTM),
    _layer("gru", nn.GRU),
    _layer("rnn", nn.RNN, spellings=same_order("rnn_tanh", "rnn_relu")),
    _cell("lstm_cell", nn.LSTMCell),
    _cell("gru_cell", nn.GRUCell),
    _cell("rnn_cell", nn.RNNCell, spellings=same_order("rnn_tanh_cell", "rnn_relu_cell")),
)
