"""Several processes as one: how they find each other, and a first sum over all their devices.

Which processes belong together, the first that applies:

1. `--distributed=off`: this process alone.
2. `--coordinator_address`, `--num_processes` and `--process_id`, all three.
3. What jax finds in the environment: Open MPI, Slurm, a TPU pod, an indexed Kubernetes Job.
4. This process alone, without any network; an error with `--distributed=on`.

JAX is imported in functions only: mistakes are told before it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bljust_jax.common.errors import UserError
from bljust_jax.common.timeout import Unreachable, in_vain, within

PORT = 8482  # where process 0 listens, unless told otherwise: jax's own choice on TPUs


class Asked(NamedTuple):
    """The flags, as `main` defines them."""

    distributed: str = "auto"  # | on | off
    coordinator_address: str = ""
    coordinator_port: int = 0  # 0 = that of the address, or the platform's own
    num_processes: int | None = None
    process_id: int | None = None
    init_timeout: int = 300  # seconds
    heartbeat_timeout: int = 100  # seconds after which a silent host is taken for dead


class Found(NamedTuple):
    """Several processes to be joined: what told of them, and arguments of
    `jax.distributed.initialize`."""

    by: str
    arguments: dict[str, Any]


def choose(
    asked: Asked,
    environ: Mapping[str, str] = os.environ,
    devices: pathlib.Path = pathlib.Path("/dev"),
) -> Found | None:
    """What to join, by the order above; None for this process alone. UserError for flags that
    contradict each other or the numbers that can be."""
    check(asked)
    if asked.distributed == "off":
        return None
    if asked.coordinator_address:
        if asked.num_processes == 1:
            return None
        return Found("flags", by_flags(asked))
    by = detect(environ, devices)
    if by:
        visible = slurm_devices(environ) if by == "Slurm" else None
        return Found(by, {"local_device_ids": visible})
    if asked.distributed == "on":
        raise UserError(
            "--distributed=on: neither Open MPI, Slurm, a TPU pod nor an indexed Kubernetes Job is "
            "found here; give --coordinator_address, --num_processes and --process_id"
        )
    return None


def check(asked: Asked) -> None:
    """UserError for what is wrong with the flags alone."""
    named = {
        "--coordinator_address": bool(asked.coordinator_address),
        "--num_processes": asked.num_processes is not None,
        "--process_id": asked.process_id is not None,
    }
    if any(named.values()):
        if asked.distributed == "off":
            given = next(name for name, is_given in named.items() if is_given)
            raise UserError(f"{given} and --distributed=off contradict each other; drop one")
        if not all(named.values()):
            missing = " and ".join(name for name, is_given in named.items() if not is_given)
            raise UserError(
                f"{missing} missing: {', '.join(named)} are given together or not at all"
            )
        if asked.num_processes < 1:
            raise UserError(f"--num_processes={asked.num_processes} must be at least 1")
        if not 0 <= asked.process_id < asked.num_processes:
            raise UserError(
                f"--process_id={asked.process_id} must be from 0 to {asked.num_processes - 1}, a "
                f"different one for each of --num_processes={asked.num_processes}"
            )
        _, port = host_and_port(asked.coordinator_address)
        if port and asked.coordinator_port not in (0, port):
            raise UserError(
                f"--coordinator_address={asked.coordinator_address} and "
                f"--coordinator_port={asked.coordinator_port} name two ports; drop one"
            )
        if port > 65535:
            raise UserError(f"--coordinator_address={asked.coordinator_address}: no such port")
    if not 0 <= asked.coordinator_port <= 65535:
        raise UserError(f"--coordinator_port={asked.coordinator_port} must be from 1 to 65535")
    for name in ("init_timeout", "heartbeat_timeout"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name}={getattr(asked, name)} must be at least 1 second")


def host_and_port(address: str) -> tuple[str, int]:
    """("10.0.0.1", 8482) of "10.0.0.1:8482"; port 0 where none is named. IPv6 in brackets."""
    host, colon, port = address.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (address, 0)


def by_flags(asked: Asked) -> dict[str, Any]:
    host, port = host_and_port(asked.coordinator_address)
    return {
        "coordinator_address": f"{host}:{port or asked.coordinator_port or PORT}",
        "num_processes": asked.num_processes,
        "process_id": asked.process_id,
        "cluster_detection_method": "deactivate",
    }


def detect(environ: Mapping[str, str], devices: pathlib.Path) -> str:
    """What has started several processes, by its traces and in jax's order; "" for nothing.

    Only on a TPU machine does jax go on to ask over the network, its own metadata server, which
    may say that the machine is alone.
    """
    if count(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if count(environ, "SLURM_NTASKS") > 1 and "SLURM_STEP_NODELIST" in environ:
        return "Slurm"
    workers = environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    if workers > 1 or count(environ, "MEGASCALE_NUM_SLICES") > 1:
        return "TPU pod"
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    told_alone = {"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"} & environ.keys()
    if chips and not told_alone and importlib.util.find_spec("libtpu"):
        return "TPU pod"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "Kubernetes"
    return ""


def count(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    return int(value) if value.isdigit() else 0


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """GPUs of this task among those that it sees; None leaves the choice to jax, which takes the
    one of the task's number on its node. That is wrong for a node's only task, whose are all, and
    for a task that was bound to one GPU and sees no other."""
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    seen = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(seen.split(",")) if seen else count(environ, "SLURM_GPUS_ON_NODE")
    tasks = tasks_on_node(
        environ.get("SLURM_STEP_TASKS_PER_NODE", ""), count(environ, "SLURM_NODEID")
    )
    return list(range(gpus)) if gpus and (tasks == 1 or gpus == 1) else None


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Slurm's "2(x3),1" -> 2, 2, 2, 1 tasks on nodes 0, 1, 2, 3; 0 where it does not say."""
    each: list[int] = []
    for part in filter(None, tasks_per_node.split(",")):
        tasks, _, times = part.rstrip(")").partition("(x")
        each += [int(tasks)] * int(times or 1)
    return each[node] if node < len(each) else 0


def join(found: Found, asked: Asked) -> None:
    """Connect to the other processes, or raise within `init_timeout` seconds: Unreachable where
    they are missing, UserError where jax cannot even look for them."""
    import jax

    if asked.coordinator_port:
        os.environ["JAX_COORDINATOR_PORT"] = str(asked.coordinator_port)
    address = found.arguments.get("coordinator_address", "")
    where = f" at {address} as process {asked.process_id}" if address else ""
    say(f"joining the other hosts{where} (by {found.by}), up to {asked.init_timeout} s")

    def connect() -> None:
        # jax ends the process where it gives up: it must do so later than we
        jax.distributed.initialize(
            **found.arguments,
            initialization_timeout=asked.init_timeout + 60,
            heartbeat_timeout_seconds=asked.heartbeat_timeout,
        )

    try:
        within(asked.init_timeout, connect, lambda: missing_hosts(found, asked))
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"joining the other hosts{where} failed (by {found.by}): {error}; give "
            "--coordinator_address, --num_processes and --process_id of a free port, or "
            "--distributed=off for this process alone"
        ) from error


def missing_hosts(found: Found, asked: Asked) -> str:
    """Why the hosts did not come together, as far as this one can see."""
    address, seconds = found.arguments.get("coordinator_address"), asked.init_timeout
    if address and asked.process_id:
        host, port = host_and_port(address)
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
        except OSError as error:
            return (
                f"nothing answers at {address} after {seconds} s ({error}): is process 0 up there, "
                "and does the firewall let the port through? (--coordinator_port, --init_timeout)"
            )
    if not address:
        return (
            f"not all processes of {found.by} came together within {seconds} s: was every host "
            "started? (slow hosts: --init_timeout; this process alone: --distributed=off)"
        )
    return (
        f"not all {asked.num_processes} processes came together within {seconds} s: was every host "
        "started, each with a --process_id of its own and the same --num_processes? (slow hosts: "
        "--init_timeout)"
    )


def prove(asked: Asked) -> None:
    """Tell of this host's devices, and have all devices of all hosts add a one each, before any
    work is done: Unreachable where that hangs or is wrong."""
    import jax

    def silent() -> str:
        return (
            f"the sum over all devices did not come back within {asked.init_timeout} s: a host has "
            "died, its devices hang, or the network between the hosts is blocked (firewall, "
            "NCCL_SOCKET_IFNAME); restart all hosts"
        )

    if jax.process_count() > 1:
        within(asked.init_timeout, jax.devices, silent)
        local = jax.local_devices()
        say(
            f"host {jax.process_index() + 1} of {jax.process_count()} is up: {kinds(local)}, "
            f"{jax.device_count()} devices in all"
        )
    else:
        say(f"devices: {kinds(jax.devices())}")
    if jax.device_count() > 1:
        total = within(asked.init_timeout, sum_of_ones, silent)
        if total != jax.device_count():
            raise Unreachable(
                f"{jax.device_count()} devices add ones up to {total:g}: the interconnect or a "
                "device is broken; restart, on other machines if it stays"
            )


def kinds(devices: list) -> str:
    """2 x TPU v4 (tpu)."""
    names = ", ".join(sorted({d.device_kind for d in devices}))
    return f"{len(devices)} x {names} ({devices[0].platform})"


def sum_of_ones() -> float:
    """The sum of a one from each device, on every host."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    total = jax.device_count()
    mesh = jax.make_mesh((total,), ("all",), axis_types=(AxisType.Auto,))
    ones = jax.make_array_from_callback(
        (total,), NamedSharding(mesh, P("all")), lambda _: np.ones(1, np.float32)
    )
    add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
    return float(add(ones))


def leave(code: int) -> None:
    """End a process that failed among several, at once: an orderly end would wait for the others,
    and they for it. They are ended when its heartbeat stops."""
    jax = sys.modules.get("jax")
    if in_vain() or (jax is not None and jax.distributed.is_initialized()):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def preemption(stack: contextlib.ExitStack) -> Callable[[int], bool]:
    """A function that says before each step whether to save and stop: once SIGTERM has arrived; of
    several processes at any one of them, and then at all of them before the same step.

    Among several it is jax that listens for the signal; a handler of ours would take it away. The
    old handler returns with the stack.
    """
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point
    arrived: list[bool] = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    stack.callback(signal.signal, signal.SIGTERM, old)
    return lambda step: bool(arrived)
