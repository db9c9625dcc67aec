"""Device check before training: list the devices, and sum a one from each over all hosts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bljust_jax.common import console
from bljust_jax.common.timeout import Unreachable, call_with_timeout


def check_devices(timeout: float | int) -> None:
    """Log the devices of this host and sum a one from each device of all hosts. Raises Unreachable
    if that takes more than `timeout` seconds or the sum is wrong."""

    def message() -> str:
        return (
            f"the sum over all devices did not come back within {timeout:g} s: a host has died, "
            "its devices hang, or the network between the hosts is blocked (firewall, "
            "NCCL_SOCKET_IFNAME); restart all hosts"
        )

    if jax.process_count() > 1:
        call_with_timeout(timeout, jax.devices, message)
        console.log(
            f"host {jax.process_index() + 1} of {jax.process_count()} is up: "
            f"{describe(jax.local_devices())}, {jax.device_count()} devices in all"
        )
    else:
        console.log(f"devices: {describe(jax.devices())}")
    if jax.device_count() > 1:
        total = call_with_timeout(timeout, sum_of_ones, message)
        if total != jax.device_count():
            raise Unreachable(
                f"{jax.device_count()} devices add ones up to {total:g}: the interconnect or a "
                "device is broken; restart, on other machines if it stays"
            )


def describe(devices: list) -> str:
    """2 x TPU v4 (tpu)."""
    names = ", ".join(sorted({d.device_kind for d in devices}))
    return f"{len(devices)} x {names} ({devices[0].platform})"


def sum_of_ones() -> float:
    """The sum of a one from each device, on every host."""
    total = jax.device_count()
    mesh = jax.make_mesh((total,), ("all",), axis_types=(AxisType.Auto,))
    ones = jax.make_array_from_callback(
        (total,), NamedSharding(mesh, P("all")), lambda _: np.ones(1, np.float32)
    )
    add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
    return float(add(ones))
