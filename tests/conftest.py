"""What every test shares: one thread, and a torchvision that can be imported."""

import torch

import benchmarks.torchvision_operators  # noqa: F401

torch.set_num_threads(1)
