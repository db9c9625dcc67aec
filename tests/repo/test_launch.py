"""What every launcher shares: strict scripts, one line for a mistake, restarts, commands that
outlive their connection, and pages whose commands exist."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.documents import commands
from tests.helpers.platforms import FAKE, FLAGS, LAUNCH, ROOT, Platform, words_of

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
POD = {"TPU_NAME": "pod", "TPU_ZONE": "us-west4-a", "TPU_PROJECT": "speech"}
JOB = {"JOB_NAME": "just", "HOSTS": "4", "CHIPS": "4", "CLAIM": "runs"}
JOB |= {"TPU_ACCELERATOR": "tpu-v5-lite-podslice", "TPU_TOPOLOGY": "4x4"}


@pytest.fixture
def platform(tmp_path):
    return Platform(tmp_path / "fakes")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_parse(path):
    source = path.read_text()
    assert path.name == "common.sh" or "\nset -euo pipefail\n" in source
    assert path.name == "common.sh" or os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", path], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("script", "arguments", "given", "missing"),
    [
        ("tpu_pod.sh", ["run"], {}, "TPU_NAME TPU_ZONE TPU_PROJECT"),
        ("tpu_pod.sh", ["create"], POD, "TPU_TYPE TPU_VERSION"),
        ("tpu_pod.sh", ["queue"], POD | {"TPU_TYPE": "v4-8"}, "TPU_VERSION"),
        ("tpu_babysit.sh", [], POD, "TPU_TYPE TPU_VERSION"),
        ("gke.sh", ["status"], {}, "JOB_NAME"),
        ("gke.sh", ["submit"], JOB, "IMAGE"),
    ],
)
def test_what_is_missing_is_one_line(platform, script, arguments, given, missing):
    done = platform.run(script, *arguments, **given)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: set {missing}, as in: ")
    assert not platform.calls()


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("tpu_pod.sh", ["brew"], "brew is none of create"),
        ("tpu_pod.sh", [], "usage: "),
        ("gke.sh", ["brew"], "brew is none of submit"),
        ("gke.sh", [], "usage: "),
        ("on_host.sh", ["brew", "x"], "brew: neither run nor stop"),
        ("on_host.sh", ["run"], "usage: "),
        ("mount_bucket.sh", [], "usage: "),
        ("mount_bucket.sh", ["gs://speech/runs"], "gs://speech/runs is no name of a bucket"),
    ],
)
def test_unknown_actions_are_one_line(platform, script, arguments, said):
    done = platform.run(script, *arguments, **POD, **JOB)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


# Restarts


def sequence(platform, codes):
    """A command that ends with these codes in turn, and counts its runs."""
    platform.answers(train=codes)
    return platform.fake("train")


@pytest.mark.parametrize(
    ("codes", "runs", "code", "pauses"),
    [
        ("0", 1, 0, []),
        ("2", 1, 2, []),
        ("130", 1, 130, []),
        ("75 0", 2, 0, [10]),
        ("134 0", 2, 0, [10]),
        ("69 1 2", 3, 2, [10, 20]),
        ("1 1 75 1 0", 5, 0, [10, 20, 10, 20]),
        ("137 137 137 137 137 0", 5, 137, [10, 20, 40, 80]),
    ],
)
def test_a_command_is_run_again_where_it_may_go_on(platform, codes, runs, code, pauses):
    python = sequence(platform, codes.split())
    done = platform.run("local.sh", *FLAGS, PYTHON=str(python), MAX_RESTARTS="4")
    assert done.returncode == code
    assert platform.calls() == [["train", "-m", "bljust_jax.main", *FLAGS]] * runs
    assert platform.pauses() == pauses
    assert ("giving up" in done.stderr) == (runs == 5 and code == 137)


def test_pauses_grow_up_to_ten_minutes(platform):
    python = sequence(platform, ["1"])
    done = platform.run("local.sh", PYTHON=str(python), MAX_RESTARTS="8", PAUSE="60")
    assert platform.pauses() == [60, 120, 240, 480, 600, 600, 600, 600]
    assert "exit code 1 after 8 restarts: giving up" in done.stderr


def test_local_runs_what_its_dry_run_prints(platform):
    python = platform.fake("train", '#!/bin/bash\nprintf "%s\\0" "$JAX_PLATFORMS" "$@"\n')
    given = {"PYTHON": str(python), "FAKE_DEVICES": "8"}
    dry = platform.run("local.sh", *FLAGS, **given, DRY_RUN="1")
    (words,) = words_of(dry.stdout)
    assert words[:3] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=8"]
    assert words[3:] == [str(python), "-m", "bljust_jax.main", *FLAGS]
    wet = platform.run("local.sh", *FLAGS, **given)
    assert wet.stdout.split("\0")[:-1] == ["cpu", "-m", "bljust_jax.main", *FLAGS]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_reaches_the_command_and_ends_the_restarts(platform, tmp_path, name):
    """Even that of the command's children; the command may take its time to save."""
    real = shutil.which("sleep")
    python = platform.fake(
        "train",
        f"#!/bin/bash\ntrap 'kill $!; {real} 0.3; echo saved; exit 75' {name}\n"
        f"touch '{tmp_path}/started'\n{real} 60 >&2 & wait\n",
    )
    # what a background shell starts ignores SIGINT, and so do its children: not this one
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, "bash", LAUNCH / "local.sh"],
        env=platform.environ({"PYTHON": str(python)}),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "started").exists)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 75
    assert not platform.calls()


def wait_for(happened, seconds=30):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# A command that outlives its connection


def on_host(*arguments, cwd):
    """(what it says, its code)"""
    process = start_on_host(*arguments, cwd=cwd)
    return process.communicate(timeout=60)[0], process.returncode


def start_on_host(*arguments, cwd):
    return subprocess.Popen(
        ["bash", LAUNCH / "on_host.sh", *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("code", [0, 2, 75])
def test_on_host_says_what_the_command_says_and_ends_as_it_ends(tmp_path, code):
    for _ in range(2):
        line = f"echo 'a  b'; echo error >&2; exit {code}"
        said = on_host("run", "run", "bash", "-c", line, cwd=tmp_path)
        assert said == ("a  b\nerror\n", code), "of this run alone"
    assert (tmp_path / "run" / "log").read_text() == "a  b\nerror\n" * 2


def test_on_host_finds_the_command_again(tmp_path):
    """The connection is lost; the same line finds the command running, and does not start a second
    one; `stop` lets it save."""
    line = "trap 'echo saved; exit 75' TERM; touch started; echo up; while :; do sleep 0.05; done"
    first = start_on_host("run", "run", "bash", "-c", line, cwd=tmp_path)
    wait_for((tmp_path / "started").exists)
    first.kill()
    first.communicate()
    (tmp_path / "started").unlink()
    again = start_on_host("run", "run", "bash", "-c", line, cwd=tmp_path)
    time.sleep(0.5)
    assert again.poll() is None
    assert not (tmp_path / "started").exists()
    assert on_host("stop", "run", cwd=tmp_path) == ("", 0)
    assert again.communicate(timeout=60)[0] == "saved\n"
    assert again.returncode == 75
    assert on_host("stop", "run", cwd=tmp_path) == ("", 0), "nothing to stop"


# The page for each platform


def test_every_command_of_the_readme_runs_dry(platform):
    """With fakes for the platforms' own programs; what is exported stays so, as in a terminal."""
    text = (LAUNCH / "README.md").read_text()
    found = commands(text)
    scripts = {word for words in found for word in words if word.startswith("launch/")}
    named = {f"launch/{path.name}" for path in SCRIPTS} - {"launch/common.sh", "launch/on_host.sh"}
    assert named <= scripts
    blocks = "".join(re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, flags=re.M | re.S))
    platform.fake("make", FAKE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks],
        env=platform.environ({"DRY_RUN": "1"}),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert {call[0] for call in platform.calls()} <= {"sbatch", "sky", "docker", "kubectl", "make"}


def test_the_readme_says_what_was_not_tried():
    text = (LAUNCH / "README.md").read_text()
    assert "dry run" in text
    for page in ("Local", "Cloud TPU", "Slurm", "SkyPilot", "Kubernetes", "Docker"):
        assert re.search(rf"^## .*{page}", text, flags=re.M), page
