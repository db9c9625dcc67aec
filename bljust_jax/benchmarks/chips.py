"""TPU and GPU topologies to compile for without having them: memory, number and devices.

libtpu describes TPUs. XLA:GPU compiles from the `target_config` of an NVIDIA GPU, without the
device and without autotuning.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from bljust_jax.common.errors import UserError
from bljust_jax.models.platform import compile_for
from bljust_jax.monitoring.peak_flops import DEVICES, Device
from bljust_jax.ops.ctc import pallas_gpu


class Chips(NamedTuple):
    """A group of equal accelerators."""

    topology: str
    count: int
    device: Device
    slices: int = 1
    megacore: bool = False  # the two cores of a chip are one device
    target: str = ""  # `target_config` of a GPU

    @property
    def memory(self) -> float:
        """Bytes that a program may use of one."""
        return self.device.memory

    @property
    def kind(self) -> str:
        """Its `device_kind`."""
        return self.device.kind


# Properties of the device as the driver reports them.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""

CHIPS = {
    "v4-16": Chips("v4:2x2x2", 8, DEVICES["v4"], megacore=True),
    "v4-128": Chips("v4:4x4x4", 64, DEVICES["v4"], megacore=True),
    "v5e-16": Chips("v5e:4x4", 16, DEVICES["v5e"]),
    "v5e-256": Chips("v5e:16x16", 256, DEVICES["v5e"]),
    "2 x v5e-16": Chips("v5e:4x4", 32, DEVICES["v5e"], slices=2),
    "v6e-8": Chips("v6e:2x4", 8, DEVICES["v6e"]),
    "1 x H200": Chips("1x1x1", 1, DEVICES["h200"], target=H200),
    "8 x H200": Chips("1x1x8", 8, DEVICES["h200"], target=H200),
}


def devices(chips: Chips) -> list[Any]:
    """Device descriptions to compile for; UserError without the plugin of an NVIDIA GPU."""
    if chips.target:
        # names by which jax finds its plugin for NVIDIA GPUs
        if not any(map(importlib.util.find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
            raise UserError(f"{chips.kind}: no jax-cuda13-plugin to compile with: run `make aot`")
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=chips.topology, target_config=chips.target
        )
        return found.devices
    options = {"num_slices": chips.slices} if chips.slices > 1 else {}
    options |= {"chip_config_name": "megacore"} if chips.megacore else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=chips.topology, **options)
    return found.devices


def ctc_implementation(chips: Chips) -> str:
    """The implementation that `ctc_loss` chooses for "auto" on such a chip."""
    if not chips.target:
        return "pallas_tpu"
    return "pallas_gpu" if jax.__version_info__ >= pallas_gpu.SINCE else "one_scan"


@contextlib.contextmanager
def absent(chips: Chips) -> Iterator[None]:
    """Programs traced inside are for such chips, which this machine lacks.

    jax asks the present GPU whether it has cuDNN attention and lets no other answer be given. Here,
    and nowhere in training, its three questions are answered for the chip: cuDNN of the
    `target_config`, on Hopper. The kernels are not compiled by cuDNN then, as their plans are made
    on the device.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(compile_for("gpu" if chips.target else "tpu"))
        if chips.target:
            answers = {
                "check_cudnn_version": lambda: 91000,
                "check_compute_capability": lambda least: float(least) <= 9.0,
                "is_cuda_compute_capability_equal": lambda other: float(other) == 9.0,
            }
            for name, answer in answers.items():
                stack.enter_context(mock.patch.object(fused_attention_stablehlo, name, answer))
        yield
