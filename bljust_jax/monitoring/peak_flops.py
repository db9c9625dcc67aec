"""Peak FLOP/s of devices by vendor specification, for model FLOP utilisation (MFU)."""

from collections.abc import Sequence

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


def flops(kinds: Sequence[str], dtype: str) -> float | None:
    """Total peak FLOP/s of the devices; None if one of them is unknown in `dtype`."""
    each = [FLOPS.get(kind, {}).get(dtype) for kind in kinds]
    return None if None in each else sum(each)
