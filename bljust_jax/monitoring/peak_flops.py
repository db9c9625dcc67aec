"""FLOP/s, bandwidth and memory of devices by vendor specification: MFU, and the plan of a run."""

from collections.abc import Sequence
from typing import NamedTuple

H100 = {"bfloat16": 989e12, "float32": 494e12}
A100 = {"bfloat16": 312e12, "float32": 156e12}

# By `device_kind`: dense FLOP/s of the matrix units; "float32" is TF32 on GPUs.
FLOPS = {
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "TPU v6e": {"bfloat16": 918e12},
    "NVIDIA H200": H100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
}

# By `device_kind`: bytes per second of the device's memory.
BANDWIDTH = {
    "TPU v4": 1.23e12,
    "TPU v5 lite": 0.82e12,
    "TPU v5e": 0.82e12,
    "TPU v5": 2.77e12,
    "TPU v5p": 2.77e12,
    "TPU v6 lite": 1.64e12,
    "TPU v6e": 1.64e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA A100-SXM4-40GB": 1.56e12,
    "NVIDIA A100-SXM4-80GB": 2.04e12,
}


def flops(kinds: Sequence[str], dtype: str) -> float | None:
    """Total peak FLOP/s of the devices; None if one of them is unknown in `dtype`."""
    each = [FLOPS.get(kind, {}).get(dtype) for kind in kinds]
    return None if None in each else sum(each)


class Device(NamedTuple):
    """One accelerator: its `device_kind`, and the bytes that a program may use of it."""

    kind: str
    memory: float


GIB = 2**30
GPU_SHARE = 0.75  # of a GPU's memory that jax uses by default

# By the names of options.
DEVICES = {
    "h200": Device("NVIDIA H200", GPU_SHARE * 139.8 * GIB),
    "h100": Device("NVIDIA H100 80GB HBM3", GPU_SHARE * 80 * GIB),
    "a100": Device("NVIDIA A100-SXM4-80GB", GPU_SHARE * 80 * GIB),
    "v4": Device("TPU v4", 32 * GIB),
    "v5e": Device("TPU v5e", 16 * GIB),
    "v5p": Device("TPU v5p", 95 * GIB),
    "v6e": Device("TPU v6e", 32 * GIB),
}
