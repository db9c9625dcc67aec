"""Joining several processes: detection, flags, timeouts, and two real processes on loopback."""

import json
import pathlib
import signal
import socket
import threading
import time

import jax
import pytest

from bljust_jax.common import cli, timeout
from bljust_jax.common.errors import UserError
from bljust_jax.parallel import cluster, device_check
from tests.helpers.processes import QUICK, TRAIN, free_port, run_command, start
from tests.helpers.workdirs import rows_without_perf

NOWHERE = pathlib.Path("no such folder")
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2"}


def asked(**given):
    return cluster.ClusterOptions(**given)


def two(**given):
    address = {"coordinator_address": "10.0.0.1:7000", "num_processes": 2, "process_id": 1}
    return asked(**address | given)


# Which processes belong together


def test_alone_without_flags_and_without_a_cluster():
    assert cluster.find_cluster(asked(), {}, NOWHERE) is None


@pytest.mark.parametrize(
    ("environ", "by"),
    [
        (SLURM, "Slurm"),
        (TPU, "TPU pod"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "TPU pod"),
        (KUBERNETES, "Kubernetes"),
        (OPEN_MPI, "Open MPI"),
        (KUBERNETES | TPU, "TPU pod"),
        (SLURM | OPEN_MPI, "Open MPI"),
    ],
)
def test_a_cluster_is_found_by_its_traces(environ, by):
    assert cluster.find_cluster(asked(), environ, NOWHERE).source == by
    assert cluster.find_cluster(asked(distributed="off"), environ, NOWHERE) is None
    assert cluster.find_cluster(two(), environ, NOWHERE).source == "flags"


@pytest.mark.parametrize(
    "environ",
    [
        SLURM | {"SLURM_NTASKS": "1"},
        {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},  # salloc, outside srun
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod that is no indexed Job's
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_traces_of_one_process_are_no_cluster(environ):
    assert cluster.find_cluster(asked(), environ, NOWHERE) is None
    with pytest.raises(UserError, match="--distributed=on: neither"):
        cluster.find_cluster(asked(distributed="on"), environ, NOWHERE)


@pytest.mark.parametrize("chip", ["accel0", "vfio/0"])
def test_the_chips_of_a_tpu_machine_are_a_trace(chip, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu" or None)
    (tmp_path / "vfio").mkdir()
    assert cluster.find_cluster(asked(), {}, tmp_path) is None
    (tmp_path / chip).touch()
    assert cluster.find_cluster(asked(), {}, tmp_path).source == "TPU pod"
    assert cluster.find_cluster(asked(), {"TPU_SKIP_MDS_QUERY": "1"}, tmp_path) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cluster.find_cluster(asked(), {}, tmp_path) is None


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, "10.0.0.1:7000"),
        ({"coordinator_address": "head"}, f"head:{cluster.PORT}"),
        ({"coordinator_address": "head", "coordinator_port": 9}, "head:9"),
        ({"coordinator_port": 7000}, "10.0.0.1:7000"),
        ({"coordinator_address": "[fe80::1]"}, f"[fe80::1]:{cluster.PORT}"),
        ({"coordinator_address": "[fe80::1]:9"}, "[fe80::1]:9"),
    ],
)
def test_flags_name_the_coordinator(given, address):
    arguments = cluster.find_cluster(two(**given), {}, NOWHERE).arguments
    assert arguments["coordinator_address"] == address
    assert (arguments["num_processes"], arguments["process_id"]) == (2, 1)
    assert arguments["cluster_detection_method"] == "deactivate"


def test_flags_for_one_process_join_nobody():
    assert cluster.find_cluster(two(num_processes=1, process_id=0), SLURM, NOWHERE) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (two(process_id=2), "--process_id=2 must be from 0 to 1"),
        (two(process_id=-1), "--process_id=-1 must be from 0 to 1"),
        (two(num_processes=0), "--num_processes=0 must be at least 1"),
        (two(process_id=None), "--process_id missing"),
        (asked(process_id=0), "--coordinator_address and --num_processes missing"),
        (two(coordinator_port=7001), "name two ports; drop one"),
        (two(coordinator_address="head:70000"), "head:70000: no such port"),
        (asked(coordinator_port=70000), "--coordinator_port=70000 must be from 1"),
        (two(distributed="off"), "--coordinator_address and --distributed=off contradict"),
        (asked(init_timeout=0), "--init_timeout=0 must be at least 1"),
        (asked(heartbeat_timeout=0), "--heartbeat_timeout=0 must be at least 1"),
    ],
)
def test_wrong_flags_are_one_line(wrong, said):
    with pytest.raises(UserError, match=said) as raised:
        cluster.find_cluster(wrong, {}, NOWHERE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({}, None),  # a CPU node
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),  # two tasks, two GPUs: jax gives one to each
        ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),  # bound: the task sees its own alone
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, [0, 1]),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, list(range(8))),
        ({"CUDA_VISIBLE_DEVICES": "3", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
    ],
)
def test_slurm_tasks_get_their_gpus(environ, devices):
    found = cluster.find_cluster(asked(), SLURM | environ, NOWHERE)
    assert found.arguments == {"local_device_ids": devices}


@pytest.mark.parametrize(
    ("said", "each"), [("2(x3),1", [2, 2, 2, 1, 0]), ("8", [8, 0]), ("", [0]), ("1,4", [1, 4])]
)
def test_slurm_counts_tasks_by_node(said, each):
    assert [cluster.tasks_on_node(said, node) for node in range(len(each))] == each


# What is said when they do not meet


def test_within_gives_what_the_body_gives():
    assert timeout.call_with_timeout(60, lambda: 3, lambda: "late") == 3
    with pytest.raises(ZeroDivisionError):
        timeout.call_with_timeout(60, lambda: 1 / 0, lambda: "late")
    until = threading.Event()
    with pytest.raises(timeout.Unreachable, match="late"):
        timeout.call_with_timeout(0.01, until.wait, lambda: "late")
    until.set()


def join(monkeypatch, initialize, given):
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    cluster.join(cluster.find_cluster(given, SLURM, NOWHERE), given)


def test_jax_waits_longer_than_we_do(monkeypatch):
    """It ends the process where it gives up, and no line of ours would be printed."""
    seen = {}
    join(monkeypatch, lambda **arguments: seen.update(arguments), two(init_timeout=5))
    assert seen["initialization_timeout"] > 5
    assert seen["heartbeat_timeout_seconds"] == 100
    assert seen["coordinator_address"] == "10.0.0.1:7000"


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_what_jax_cannot_do_is_the_users_to_mend(monkeypatch, error):
    def initialize(**arguments):
        raise error("the port is taken")

    with pytest.raises(UserError, match=r"10.0.0.1:7000 as process 1 failed .*the port is taken"):
        join(monkeypatch, initialize, two())
    with pytest.raises(UserError, match=r"by Slurm.*--distributed=off for this process alone"):
        join(monkeypatch, initialize, asked())


@pytest.mark.slow
def test_hosts_that_do_not_come_are_told_apart(monkeypatch):
    """A coordinator that is not there, one that is there while others are not, and a cluster."""
    until = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for given, said in [
            (two(coordinator_address=address, init_timeout=1), "not all 2 processes came together"),
            (two(coordinator_address="127.0.0.1:1", init_timeout=1), "nothing answers at 127.0.0"),
            (two(process_id=0, init_timeout=1), "not all 2 processes came together within 1 s"),
            (asked(init_timeout=1), "not all processes of Slurm came together"),
        ]:
            with pytest.raises(timeout.Unreachable, match=said):
                join(monkeypatch, lambda **_: until.wait(), given)
    until.set()


def test_all_devices_add_a_one(monkeypatch, capsys):
    device_check.check_devices(60)
    assert capsys.readouterr().err == "devices: 8 x cpu (cpu)\n"
    assert device_check.sum_of_ones() == jax.device_count() == 8
    monkeypatch.setattr(device_check, "sum_of_ones", lambda: 7.0)
    with pytest.raises(timeout.Unreachable, match="8 devices add ones up to 7"):
        device_check.check_devices(60)
    until = threading.Event()
    monkeypatch.setattr(device_check, "sum_of_ones", until.wait)
    with pytest.raises(timeout.Unreachable, match="did not come back within 1 s"):
        device_check.check_devices(1)
    until.set()


def test_a_process_alone_ends_as_it_likes():
    deadline = time.monotonic() + 10
    while timeout.has_pending_calls():
        assert time.monotonic() < deadline, "a thread of an earlier test"
        time.sleep(0.01)
    cluster.exit_without_waiting(3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_processes=2"], "--coordinator_address and --process_id missing"),
        (["--coordinator_address=head", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
        (["--distributed=maybe"], "auto|on|off"),
        (["--process_id=first"], "--process_id=first"),
        (
            ["--workdir=gs://bucket/run"],
            "gs://bucket/run is no folder; mount the bucket (launch/mount_bucket.sh NAME)",
        ),
    ],
)
def test_wrong_flags_are_told_before_jax(flags, said):
    done = run_command(QUICK, *flags)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


# Real processes


MEET = """
import sys, time
from bljust_jax.parallel import cluster, device_check
port, process_id, code = map(int, sys.argv[1:])
asked = cluster.ClusterOptions(
    coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=process_id,
    init_timeout=120, heartbeat_timeout=5,
)
cluster.join(cluster.find_cluster(asked), asked)
device_check.check_devices(asked.init_timeout)
if code and process_id:
    cluster.exit_without_waiting(code)
if code:
    time.sleep(600)
"""


def meet(code):
    port = str(free_port())
    return port, [start(["-c", MEET], port, str(i), str(code)) for i in range(2)]


def test_two_processes_meet():
    """Both are up, and all four devices add a one."""
    port, pair = meet(0)
    said = [process.communicate(timeout=240)[1] for process in pair]
    for i in range(2):
        assert pair[i].returncode == 0, said[i]
        assert f"joining the other hosts at 127.0.0.1:{port} as process {i}" in said[i]
        assert f"host {i + 1} of 2 is up: 2 x cpu (cpu), 4 devices in all" in said[i]


# daily: two processes that meet, and a coordinator that is missing
@pytest.mark.slow
def test_a_process_that_fails_waits_for_nobody_and_ends_the_other():
    """Else it would wait for the other's orderly end, and the other for its part of a sum."""
    _, (busy, failed) = meet(3)
    failed.communicate(timeout=240)
    assert failed.returncode == 3
    busy.communicate(timeout=240)  # it would sleep for 600 s
    assert busy.returncode == -signal.SIGABRT


def test_a_missing_coordinator_is_one_line_in_time(tmp_path):
    """jax alone would print a page and abort."""
    port = free_port()
    process = start(
        ["-m", "bljust_jax.main", "--config=configs/quickstart.py:smoke"],
        *(f"--workdir={tmp_path}", f"--coordinator_address=127.0.0.1:{port}"),
        *("--num_processes=2", "--process_id=1", "--init_timeout=2"),
    )
    out, err = process.communicate(timeout=240)
    joining, error = err.splitlines()
    assert process.returncode == cli.UNREACHABLE
    assert not out
    assert joining.endswith(f"at 127.0.0.1:{port} as process 1 (by flags), up to 2 s")
    assert error.startswith(f"error: nothing answers at 127.0.0.1:{port} after 2 s")
    assert "--coordinator_port" in error


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Bit for bit as one process with as many devices (a sum of two has one order), although
    SIGTERM reaches one of them alone, and both save before the same step and start again."""

    def train_pair(workdir):
        flags = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
        return [
            start(TRAIN, f"--workdir={workdir}", *flags, f"--process_id={i}", devices=1)
            for i in range(2)
        ]

    pair = train_pair(tmp_path / "two")
    metrics_file = tmp_path / "two" / "metrics.jsonl"
    while not metrics_file.exists() or not metrics_file.read_text():
        assert all(process.poll() is None for process in pair)
        time.sleep(0.1)
    pair[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=600) for process in pair]
    assert [process.returncode for process in pair] == [75, 75], said
    pair = train_pair(tmp_path / "two")
    said = [process.communicate(timeout=600) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    one = start(TRAIN, f"--workdir={tmp_path / 'one'}")
    alone = json.loads(one.communicate(timeout=600)[0].splitlines()[-1])
    assert json.loads(said[0][0].splitlines()[-1]) == alone
    assert "params_digest" not in said[1][0], "process 0 speaks for all"
    assert rows_without_perf(tmp_path / "two") == rows_without_perf(tmp_path / "one")
    files = {path.name for path in (tmp_path / "one").rglob("*") if path.suffix != ".0"}
    assert {"report.md", "example.npz", "dev-best.jsonl", "run.json"} <= files
