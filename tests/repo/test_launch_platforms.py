"""Each platform's launcher with fakes for its programs: what it would run, word for word, and when
it would run it again."""

import json
import os
import pathlib
import subprocess

import pytest
import yaml

from tests.helpers.platforms import FLAGS, LAUNCH, MOUNTING, ROOT, Platform, words_of

POD = {"TPU_NAME": "pod", "TPU_ZONE": "us-west4-a", "TPU_PROJECT": "speech"}
MADE = {"TPU_TYPE": "v5litepod-16", "TPU_VERSION": "v2-alpha-tpuv5-lite"}
WHERE = ["--zone=us-west4-a", "--project=speech"]
GKE = {"JOB_NAME": "just", "IMAGE": "registry/image:1", "HOSTS": "4", "CHIPS": "4"}
GKE |= {"TPU_ACCELERATOR": "tpu-v5-lite-podslice", "TPU_TOPOLOGY": "4x4", "CLAIM": "runs"}


@pytest.fixture
def platform(tmp_path):
    return Platform(tmp_path / "fakes")


# TPU pods

TPUS = ["gcloud", "compute", "tpus"]
SSH = [*TPUS, "tpu-vm", "ssh", "pod"]


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        (
            ["create"],
            MADE,
            [*TPUS, "tpu-vm", "create", "pod", "--accelerator-type=v5litepod-16"]
            + ["--version=v2-alpha-tpuv5-lite", *WHERE],
        ),
        (
            ["queue"],
            MADE | {"SPOT": "1"},
            [*TPUS, "queued-resources", "create", "pod", "--node-id=pod"]
            + ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
            + WHERE,
        ),
        (
            ["run", "--config=a.py"],
            {},
            [*SSH, "--worker=all", "--command=cd bljust_jax && launch/on_host.sh run run "] + WHERE,
        ),
        (["status"], {}, [*TPUS, "tpu-vm", "describe", "pod", "--format=value(state)", *WHERE]),
        (["logs"], {}, [*SSH, "--worker=0", "--command=tail -n 100 -F bljust_jax/run/log", *WHERE]),
        (
            ["stop"],
            {},
            [*SSH, "--worker=all", "--command=bljust_jax/launch/on_host.sh stop bljust_jax/run"]
            + WHERE,
        ),
        (["delete"], {}, [*TPUS, "tpu-vm", "delete", "pod", "--quiet", *WHERE]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tpu_pod_runs_what_its_dry_run_prints(platform, arguments, given, expected):
    if arguments[0] == "run":
        expected = [*expected]
        expected[7] += ".venv/bin/python -u -m bljust_jax.main --distributed=on --config=a.py"
    dry = platform.run("tpu_pod.sh", *arguments, **POD, **given, DRY_RUN="1")
    assert not platform.calls()
    assert words_of(dry.stdout) == [expected]
    wet = platform.run("tpu_pod.sh", *arguments, **POD, **given)
    assert wet.returncode == dry.returncode == 0
    assert platform.calls() == [expected]


def test_tpu_pod_installs_the_checkout(platform):
    hook = '[ "$4" != scp ] || tar -tzf "$5" > "$FAKES/listing"'
    (platform.folder / "gcloud.hook").write_text(hook)
    done = platform.run("tpu_pod.sh", "install", **POD, REMOTE_PYTHON="python3.11")
    assert done.returncode == 0, done.stderr
    copy, make = platform.calls()
    assert copy[:5] == [*TPUS, "tpu-vm", "scp"]
    assert copy[6:] == ["pod:bljust_jax.tgz", "--worker=all", *WHERE]
    assert not pathlib.Path(copy[5]).exists(), "the copy is removed"
    assert make[:7] == [*SSH, "--worker=all"]
    assert make[7].startswith("--command=mkdir -p bljust_jax && tar -xzf bljust_jax.tgz ")
    assert make[7].endswith("make -C bljust_jax setup ACCEL=tpu PYTHON=python3.11")
    listing = set((platform.folder / "listing").read_text().splitlines())
    assert {"bljust_jax/main.py", "configs/variants.py", "launch/on_host.sh", "Makefile"} <= listing
    assert {"requirements.lock", "pyproject.toml"} <= listing
    assert not any(name.startswith((".venv", "runs/", ".git")) for name in listing)


def test_flags_reach_the_hosts_as_they_were_given(platform, tmp_path):
    """Spaces, quotes, variables and semicolons are words, on the hosts as here."""
    platform.run("tpu_pod.sh", "run", *FLAGS, **POD)
    ((*_, command, _, _),) = platform.calls()
    on_host = tmp_path / "bljust_jax" / "launch"
    on_host.mkdir(parents=True)
    (on_host / "on_host.sh").write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    (on_host / "on_host.sh").chmod(0o755)
    line = command.removeprefix("--command=")
    said = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    expected = ["run", "run", ".venv/bin/python", "-u", "-m", "bljust_jax.main", "--distributed=on"]
    assert said.stdout.split("\0")[:-1] == expected + FLAGS


def test_tpu_pod_mounts_a_bucket_before_it_trains(platform):
    platform.run("tpu_pod.sh", "run", "--config=a.py", **POD, BUCKET="speech")
    ((*_, command, _, _),) = platform.calls()
    line = "--command=cd bljust_jax && launch/mount_bucket.sh speech && launch/on_host.sh run run "
    assert command.startswith(line)


@pytest.mark.parametrize("name", ["speech", "gs://speech"])
def test_a_bucket_is_mounted_once(platform, name):
    for program in MOUNTING:
        platform.fake(program)
    mounted = ["mountpoint", "--quiet", "/mnt/speech"]
    platform.answers(mountpoint=["1"])
    done = platform.run("mount_bucket.sh", name)
    assert done.returncode == 0, done.stderr
    assert platform.calls() == [
        mounted,
        ["sudo", "mkdir", "-p", "/mnt/speech"],
        ["sudo", "chown", str(os.getuid()), "/mnt/speech"],
        ["gcsfuse", "--implicit-dirs", "--rename-dir-limit=1000000", "speech", "/mnt/speech"],
    ]
    platform.answers(mountpoint=["0"])
    platform.run("mount_bucket.sh", name)
    assert platform.calls()[4:] == [mounted]


def test_an_image_without_gcsfuse_is_one_line(platform):
    platform.fake("mountpoint")
    platform.answers(mountpoint=["1"])
    done = platform.run("mount_bucket.sh", "speech")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no gcsfuse on ")


def verbs(platform):
    """What a babysitter asked of gcloud: describe, ssh run, delete, ..."""
    done = []
    for call in platform.calls():
        command = next((word for word in call if word.startswith("--command=")), "")
        done.append("run" if "on_host.sh run" in command else call[4])
    return done


@pytest.mark.daily("answers3-*", "answers4-*", "answers7-*")
@pytest.mark.parametrize(
    ("answers", "code", "expected"),
    [
        (["0 READY", "0"], 0, "describe run"),
        (["1", "0"], 0, "describe create scp ssh run"),
        (["0 READY", "2"], 2, "describe run"),
        (
            ["0 READY", "75", "0 PREEMPTED", "0", "0", "0", "0", "0"],
            0,
            "describe run describe delete create scp ssh run",
        ),
        (["0 READY", "134", "0 READY", "0"], 0, "describe run describe run"),
        (["0 CREATING", "0 READY", "0"], 0, "describe describe run"),
        (["1", "1", "1", "0"], 0, "describe create describe create scp ssh run"),
        (["0 READY", "1", "0 READY", "1", "0 READY", "1"], 1, "describe run " * 3),
    ],
)
def test_the_babysitter_makes_the_tpu_again_and_goes_on(platform, answers, code, expected):
    platform.answers(gcloud=answers)
    done = platform.run("tpu_babysit.sh", *FLAGS, **POD, **MADE, SPOT="1", MAX_RESTARTS="2")
    assert done.returncode == code, done.stderr
    assert verbs(platform) == expected.split()
    assert all("--spot" in call for call in platform.calls() if call[4] == "create")


def test_a_dry_babysitter_prints_all_that_it_may_run(platform):
    dry = platform.run("tpu_babysit.sh", *FLAGS, **POD, **MADE, DRY_RUN="1")
    assert [words[4] if words[0] == "gcloud" else words[0] for words in words_of(dry.stdout)] == [
        *("create", "tar", "scp", "ssh", "ssh"),
    ]
    assert not platform.calls()


# Slurm

ALLOCATION = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17", "PYTHON": "my python"}
SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=120", "my python", "-u", "-m", "bljust_jax.main"]


@pytest.mark.parametrize(
    ("code", "before", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (134, 19, True), (75, 20, False)],
)
def test_slurm_queues_a_job_again_where_it_may_go_on(platform, code, before, requeued):
    platform.answers(srun=[code])
    given = ALLOCATION | {"SLURM_RESTART_COUNT": str(before)}
    done = platform.run("slurm.sbatch", *FLAGS, **given, cwd=platform.folder)
    assert done.returncode == code
    requeue = [["scontrol", "requeue", "17"]] if requeued else []
    assert platform.calls() == [[*SRUN, *FLAGS], *requeue]
    assert ("giving up" in done.stderr) == (before == 20)


def test_slurm_warns_the_tasks_before_the_time_is_over():
    """Not the batch shell (B:), which would end without queueing the job again."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(options)
    first_command = next(n for n, line in enumerate(lines) if line and line[0] != "#")
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command


def test_slurm_needs_sbatch(platform):
    done = platform.run("slurm.sbatch")
    assert done.returncode != 0
    assert "submit this file with sbatch" in done.stderr
    assert not platform.calls()


# Kubernetes, SkyPilot, Docker


def test_gke_submits_the_template_filled_in(platform):
    (platform.folder / "kubectl.hook").write_text('cat > "$FAKES/stdin"')
    done = platform.run("gke.sh", "submit", *FLAGS, **GKE)
    assert done.returncode == 0, done.stderr
    assert platform.calls() == [["kubectl", "apply", "--filename=-"]]
    text = (platform.folder / "stdin").read_text()
    dry = platform.run("gke.sh", "submit", *FLAGS, **GKE, DRY_RUN="1")
    assert dry.stdout == text + "kubectl apply --filename=-\n"
    made = yaml.safe_load(text)
    assert made["metadata"]["name"] == "just"
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 20
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert set(pod["nodeSelector"].values()) == {"tpu-v5-lite-podslice", "4x4"}
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["args"] == FLAGS
    assert container["image"] == "registry/image:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("status", "get jobset just"),
        ("stop", "delete jobset just"),
        (
            "logs",
            "logs --follow --prefix --tail=100 --max-log-requests=100 "
            "--selector=jobset.sigs.k8s.io/jobset-name=just",
        ),
    ],
)
def test_gke_runs_what_its_dry_run_prints(platform, action, expected):
    dry = platform.run("gke.sh", action, JOB_NAME="just", DRY_RUN="1")
    assert words_of(dry.stdout) == [["kubectl", *expected.split()]]
    assert not platform.calls()
    platform.run("gke.sh", action, JOB_NAME="just")
    assert platform.calls() == [["kubectl", *expected.split()]]


def test_gke_refuses_numbers_that_are_none(platform):
    done = platform.run("gke.sh", "submit", **GKE | {"HOSTS": "4; rm"})
    assert done.returncode == 2
    assert done.stderr == "error: HOSTS=4; rm must be a whole number\n"
    assert not platform.calls()


@pytest.mark.parametrize("nodes", [1, 2])
def test_skypilot_tells_the_nodes_of_each_other(platform, nodes):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    codes = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert 75 in codes
    assert not {0, 2, 130} & set(codes)
    given = {"SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_RANK": str(nodes - 1)}
    given |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "DRY_RUN": "1", "PYTHON": "python"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", task["run"]],
        env=platform.environ(given | {"ARGS": "--config=a.py --config.seed=1"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "python -m bljust_jax.main --config=a.py --config.seed=1 "
    expected += "--workdir=/bucket/runs/bljust-jax"
    if nodes == 2:
        expected += " --coordinator_address=10.0.0.1 --num_processes=2 --process_id=1"
    assert done.stdout == expected + "\n"


def test_the_image_holds_what_it_starts():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY M") for word in line.split()[1:-1]]
    assert all(list(ROOT.glob(word)) for word in copied)
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT")]
    (script,) = json.loads(entry.removeprefix("ENTRYPOINT "))
    assert os.access(ROOT / script, os.X_OK)
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv*", "runs"} <= set(ignored)
