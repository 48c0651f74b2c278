"""Whether this machine can run the Triton kernels, without importing triton."""

from __future__ import annotations

from importlib.util import find_spec

import torch

LEAST_CAPABILITY = (8, 0)  # int8 products of 32 bytes at a time, packed float16 maxima


class Unavailable(Exception):
    """Why the kernels cannot run here, in one sentence for people."""


def current_gpu(device: torch.device | str = "cuda") -> str:
    """What the kernels would run on, for people. Raises Unavailable."""
    if torch.device(device).type != "cuda":
        raise Unavailable(f"Triton kernels run on cuda devices, not on {device}")
    if find_spec("triton") is None:
        raise Unavailable("triton is not installed")
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no NVIDIA GPU")
    capability = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)}, sm_{capability[0]}{capability[1]}"
    if capability < LEAST_CAPABILITY:
        raise Unavailable(f"{name} is older than sm_80")
    return name
