"""Programs compiled for TPUs that are not there: libtpu compiles for a topology on any machine.

Lowering, layouts, memory and collectives are checked; nothing runs. Without libtpu every test here
skips; `make aot` makes an environment that has it.
"""

import os

os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import functools
import importlib.util
import math

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

# One host or two of each generation, eight chips; v4 joins the two cores of a chip.
TOPOLOGIES = {
    "v4": ("v4:2x2x2", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:2x4", {}),
    "v6e": ("v6e:2x4", {}),
}


def pytest_runtest_setup(item):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: run `make aot`")


@functools.cache
def chips(generation: str):
    name, options = TOPOLOGIES[generation]
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(generation, data, fsdp): a mesh of that many of its chips."""

    def make(generation: str, data: int = 1, fsdp: int = 1) -> Mesh:
        devices = np.array(chips(generation)[: math.prod((data, fsdp))])
        shape = devices.reshape(data, fsdp)
        return Mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    return make


@pytest.fixture(autouse=True)
def fresh_programs():
    """A cached program would prove nothing of today's compiler."""
    directory = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", directory)
