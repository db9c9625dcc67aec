"""Join several processes: cluster detection (Slurm, TPU pod, Open MPI, Kubernetes) and flags.

Which processes belong together, by the first rule that applies:

1. `--distributed=off`: this process alone.
2. `--coordinator_address`, `--num_processes` and `--process_id`, all three.
3. What jax detects in the environment: Open MPI, Slurm, a TPU pod, an indexed Kubernetes Job.
4. This process alone, without any network; an error with `--distributed=on`.

JAX is imported in functions only, so that wrong flags are reported before it is loaded.
"""

import importlib.util
import os
import pathlib
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from bljust_jax.common import console
from bljust_jax.common.errors import UserError
from bljust_jax.common.timeout import call_with_timeout, exit_now, has_pending_calls

PORT = 8482  # default port of process 0: jax's own choice on TPUs


class ClusterOptions(NamedTuple):
    """Command-line flags on the processes of a run, as `main` defines them."""

    distributed: str = "auto"  # | on | off
    coordinator_address: str = ""
    coordinator_port: int = 0  # 0 = that of the address, or the platform's own
    num_processes: int | None = None
    process_id: int | None = None
    init_timeout: int = 300  # seconds
    heartbeat_timeout: int = 100  # seconds without an answer after which a host is considered dead


class Cluster(NamedTuple):
    """Several processes to join."""

    source: str  # "flags", "Slurm", ...
    arguments: dict[str, Any]  # of `jax.distributed.initialize`


def find_cluster(
    options: ClusterOptions,
    environ: Mapping[str, str] = os.environ,
    devices: pathlib.Path = pathlib.Path("/dev"),
) -> Cluster | None:
    """The processes to join, by the rules above; None for this process alone. UserError for flags
    that contradict each other or are out of range."""
    check_options(options)
    if options.distributed == "off":
        return None
    if options.coordinator_address:
        if options.num_processes == 1:
            return None
        return Cluster("flags", flag_arguments(options))
    source = detect(environ, devices)
    if source:
        visible = slurm_devices(environ) if source == "Slurm" else None
        return Cluster(source, {"local_device_ids": visible})
    if options.distributed == "on":
        raise UserError(
            "--distributed=on: neither Open MPI, Slurm, a TPU pod nor an indexed Kubernetes Job is "
            "found here; give --coordinator_address, --num_processes and --process_id"
        )
    return None


def check_options(options: ClusterOptions) -> None:
    """UserError for flags that are incomplete, contradictory or out of range."""
    named = {
        "--coordinator_address": bool(options.coordinator_address),
        "--num_processes": options.num_processes is not None,
        "--process_id": options.process_id is not None,
    }
    if any(named.values()):
        if options.distributed == "off":
            given = next(name for name, is_given in named.items() if is_given)
            raise UserError(f"{given} and --distributed=off contradict each other; drop one")
        if not all(named.values()):
            missing = " and ".join(name for name, is_given in named.items() if not is_given)
            raise UserError(f"{missing} missing: give all of {', '.join(named)}, or none")
        if options.num_processes < 1:
            raise UserError(f"--num_processes={options.num_processes} must be at least 1")
        if not 0 <= options.process_id < options.num_processes:
            raise UserError(
                f"--process_id={options.process_id} must be from 0 to {options.num_processes - 1}, "
                f"a different one for each of --num_processes={options.num_processes}"
            )
        _, port = host_and_port(options.coordinator_address)
        if port and options.coordinator_port not in (0, port):
            raise UserError(
                f"--coordinator_address={options.coordinator_address} and "
                f"--coordinator_port={options.coordinator_port} name two ports; drop one"
            )
        if port > 65535:
            raise UserError(f"--coordinator_address={options.coordinator_address}: no such port")
    if not 0 <= options.coordinator_port <= 65535:
        raise UserError(f"--coordinator_port={options.coordinator_port} must be from 1 to 65535")
    for name in ("init_timeout", "heartbeat_timeout"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1 second")


def host_and_port(address: str) -> tuple[str, int]:
    """("10.0.0.1", 8482) of "10.0.0.1:8482"; port 0 if there is none. IPv6 in brackets."""
    host, colon, port = address.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (address, 0)


def flag_arguments(options: ClusterOptions) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` from --coordinator_address and the like."""
    host, port = host_and_port(options.coordinator_address)
    return {
        "coordinator_address": f"{host}:{port or options.coordinator_port or PORT}",
        "num_processes": options.num_processes,
        "process_id": options.process_id,
        "cluster_detection_method": "deactivate",
    }


def detect(environ: Mapping[str, str], devices: pathlib.Path) -> str:
    """The launcher of several processes, from environment variables and devices, in jax's order;
    "" if there is none.

    On a TPU machine jax also queries the metadata server, which may report a single machine.
    """
    if read_count(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if read_count(environ, "SLURM_NTASKS") > 1 and "SLURM_STEP_NODELIST" in environ:
        return "Slurm"
    workers = environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    if workers > 1 or read_count(environ, "MEGASCALE_NUM_SLICES") > 1:
        return "TPU pod"
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    no_metadata = {"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"} & environ.keys()
    if chips and not no_metadata and importlib.util.find_spec("libtpu"):
        return "TPU pod"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "Kubernetes"
    return ""


def read_count(environ: Mapping[str, str], name: str) -> int:
    """A variable as an integer; 0 if unset or not a number."""
    value = environ.get(name, "")
    return int(value) if value.isdigit() else 0


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Indices of the visible GPUs that this task uses; None leaves the choice to jax.

    jax takes the GPU with the task's number on its node. That is wrong for the only task of a node,
    which should use all, and for a task that is bound to the only GPU visible to it."""
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",")) if visible else read_count(environ, "SLURM_GPUS_ON_NODE")
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    tasks = tasks_on_node(tasks_per_node, read_count(environ, "SLURM_NODEID"))
    return list(range(gpus)) if gpus and (tasks == 1 or gpus == 1) else None


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Slurm's "2(x3),1" -> 2, 2, 2, 1 tasks on nodes 0, 1, 2, 3; 0 for other nodes."""
    each: list[int] = []
    for part in filter(None, tasks_per_node.split(",")):
        tasks, _, times = part.rstrip(")").partition("(x")
        each += [int(tasks)] * int(times or 1)
    return each[node] if node < len(each) else 0


def join(cluster: Cluster, options: ClusterOptions) -> None:
    """Connect to the other processes. Raises Unreachable if some are missing after `init_timeout`
    seconds, UserError if jax cannot start to connect."""
    import jax

    if options.coordinator_port:
        os.environ["JAX_COORDINATOR_PORT"] = str(options.coordinator_port)
    address = cluster.arguments.get("coordinator_address", "")
    where = f" at {address} as process {options.process_id}" if address else ""
    console.log(
        f"joining the other hosts{where} (by {cluster.source}), up to {options.init_timeout} s"
    )

    def connect() -> None:
        # jax ends the process at its own timeout, which must come after ours
        jax.distributed.initialize(
            **cluster.arguments,
            initialization_timeout=options.init_timeout + 60,
            heartbeat_timeout_seconds=options.heartbeat_timeout,
        )

    try:
        call_with_timeout(options.init_timeout, connect, lambda: missing_hosts(cluster, options))
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"joining the other hosts{where} failed (by {cluster.source}): {error}; give "
            "--coordinator_address, --num_processes and --process_id of a free port, or "
            "--distributed=off for this process alone"
        ) from error


def missing_hosts(cluster: Cluster, options: ClusterOptions) -> str:
    """The message for hosts that did not connect in time."""
    address, seconds = cluster.arguments.get("coordinator_address"), options.init_timeout
    if address and options.process_id:
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
            f"not all processes of {cluster.source} came together within {seconds} s: was every "
            "host started? (slow hosts: --init_timeout; this process alone: --distributed=off)"
        )
    return (
        f"not all {options.num_processes} processes came together within {seconds} s: was every "
        "host started, each with a --process_id of its own and the same --num_processes? (slow "
        "hosts: --init_timeout)"
    )


def exit_without_waiting(code: int) -> None:
    """Exit now if this process is one of several or has a call that timed out; else return.

    An orderly exit would wait for the other processes, and they for this one. They end when its
    heartbeat stops."""
    jax = sys.modules.get("jax")
    if has_pending_calls() or (jax is not None and jax.distributed.is_initialized()):
        exit_now(code)
