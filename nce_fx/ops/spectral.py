"""Fourier transforms and complex numbers."""

from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import elementwise, spectral

_NO_LAYER = Absent("no layer reads complex numbers")

_transform = family(kind="movement", channels=spectral.transform, example=_NO_LAYER)
_complex = family(kind="pointwise", example=_NO_LAYER)

ROWS = (
    _transform("_fft_r2c", "input, dim, normalization, onesided"),
    _transform("_fft_c2r", "input, dim, normalization, last_dim_size"),
    _transform("_fft_c2c", "input, dim, normalization, forward"),
    _complex("complex", spectral.joined, "real, imag"),
    _complex("polar", spectral.joined, "abs, angle"),
    _complex("angle", spectral.magnitude, "input"),
    _complex("view_as_real", spectral.as_pairs, "input", memory="view"),
    _complex("view_as_complex", spectral.from_pairs, "input", memory="view"),
    _complex("conj", elementwise.pointwise, "input", memory="view", spellings=same_order("_conj", "resolve_conj")),
)
