"""What a metric finds, before it is put together per layer and per group."""

from dataclasses import dataclass, field


@dataclass
class Scores:
    """Cost of noise in each layer's weights (by layer path) and in each activation (by node name)."""

    weight: dict[str, float] = field(default_factory=dict)
    activation: dict[str, float] = field(default_factory=dict)
    forwards: float = 0.0
    """Forward passes over the batches that it took; a backward counts as two."""
