"""What devices can do at most, as their makers state it: model FLOP utilisation is of that."""

from __future__ import annotations

from collections.abc import Sequence

H100 = {"bfloat16": 989e12, "float32": 494e12}
A100 = {"bfloat16": 312e12, "float32": 156e12}

# By `device_kind`: dense FLOP/s of the matrix units; "float32" is TF32 where there is one.
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
    """FLOP/s of all these devices together; None where one of them, or it in `dtype`, is not
    known."""
    each = [FLOPS.get(kind, {}).get(dtype) for kind in kinds]
    return None if None in each else sum(each)
