"""Run the commands of a document in a folder, shrunk: tiny corpora, a few steps, few rounds."""

import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

from bljust_jax.data.sources import open_source, read_audio
from tests.helpers import corpora
from tests.helpers.documents import EXPORTED, ROOT, as_module, load_config
from tests.helpers.fake_recognizer import store
from tests.helpers.systems import SMALL

RATE = 16000
STEPS = 2  # of each phase
# What runs elsewhere: Makefile targets are checked to exist, launchers run dry in
# tests/repo/test_launch.py, several processes in tests/parallel.
ELSEWHERE = ("make", "pip", "source", "launch/")
DROPPED = (
    "--config.data.root",
    "--coordinator",
    "--num_proc",
    "--process_id",
)


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """train.jsonl, dev.jsonl, their audio, recordings/, talk.mp3, files.txt, configs/, folders of
    recordings."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for split in ("train", "dev"):
        entries = []
        for n, u in enumerate(open_source(f"synthetic:tiny/{split}")):
            name = f"{split}{n}.wav"
            store(folder / name, read_audio(u), RATE)
            entries.append({"audio_filepath": name, "duration": u.duration, "text": u.text})
            entries[-1] |= {"speaker": u.speaker, "id": f"{split}{n}"}
        corpora.write(folder, split, entries)
        (folder / "recordings" / split).mkdir(parents=True)
        for entry in entries:
            audio = folder / "recordings" / split / entry["audio_filepath"]
            shutil.copyfile(folder / entry["audio_filepath"], audio)
            audio.with_suffix(".txt").write_text(f"{entry['text']}\n")
    store(folder / "talk.mp3", read_audio(open_source("synthetic:tiny/dev")[0]), RATE, format="MP3")
    audio = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    corpora.write(folder, "audio", [{k: v for k, v in row.items() if k != "text"} for row in audio])
    (folder / "files.txt").write_text("dev0.wav\ndev1.wav\n")
    for name in ("musan/noise", "musan/speech", "rirs"):  # what augmentation mixes in
        (folder / name).mkdir(parents=True)
        store(folder / name / "0.wav", read_audio(u), RATE)
    return folder


def execute(words: list[str], folder: pathlib.Path, cache: pathlib.Path | str) -> None:
    """Runs one command, shrunk, in `folder`, the current one; AssertionError unless it exits 0."""
    if words[0].startswith(ELSEWHERE):
        return
    words = as_module(words)
    if words[1] == EXPORTED:  # torch is not here; tests/peers run it
        assert (folder / words[1]).is_file()
        return
    if words[1].endswith(".py"):
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        return
    assert words[:2] == ["python", "-m"], words
    module, options = words[2], words[3:]
    if module == "bljust_jax.main":
        train(options, folder, cache)
        return
    if module == "bljust_jax.bench":
        options = ["ctc", "--rounds", "1", "--shapes", "2,8,2,4"]
    if module == "bljust_jax.export_checkpoint":
        options = [*options, "--unchecked"]  # torch is not here; tests/peers check parity
    options = [local_source(word) for word in options]
    allowed = (0, 1) if module == "bljust_jax.doctor" else (0,)  # 1: findings
    assert importlib.import_module(module).main(options) in allowed, words


def train(options: list[str], folder: pathlib.Path, cache: pathlib.Path | str) -> None:
    """`bljust train`, a process of its own, in variant smoke unless in overfit."""
    given = dict(word[2:].partition("=")[::2] for word in options)
    if "config.init_from" in given:
        given["config.init_from"] = make_source(given, folder, cache)
    path, _, variants = given.pop("config").partition(":")
    path = path if path.endswith(".py") else f"configs/{path}.py"
    name = "-".join([pathlib.Path(path).stem, *variants.replace(",", "-").split()])
    if "overfit" not in variants:
        variants = ",".join([*variants.split(",")[:], "smoke"]).strip(",")
    config = load_config(f"{path}:{variants}")
    given = {k: v for k, v in given.items() if not f"--{k}".startswith(DROPPED)}
    given = {k: local_source(v) if k.startswith("config.data.") else v for k, v in given.items()}
    shape = {k: STEPS for k, v in config.phases.items() if isinstance(v, float | int)}
    small = {f"config.phases.{k}": steps for k, steps in shape.items()}
    small |= {"config.eval_every": 100, "config.save_every": 100, "config.log_every": 2}
    small |= {"config.compile_cache": cache, "workdir": f"runs/{name}"}
    if config.encoder == "conformer" and "overfit" not in variants:
        small |= {f"config.model.{k}": v for k, v in SMALL["conformer"].items()}
    if "config.data.text.vocab_size" in given:
        given["config.data.text.vocab_size"] = "30"
    if "config.data.unlabelled_hours" in given:
        given["config.data.unlabelled_hours"] = "0.001"
    if "config.budget" in given:
        given["config.budget"] = "0.1"  # minutes
    if "profile_steps" in given:
        given["profile_steps"] = "2:4"
    if "workdir" in given:
        small["workdir"] = f"runs/{pathlib.Path(given.pop('workdir')).name}"
    shutil.rmtree(folder / small["workdir"], ignore_errors=True)
    words = [f"--config={path}:{variants}"]
    words += [f"--{k}={v}" if v != "" else f"--{k}" for k, v in {**small, **given}.items()]
    meshed = any(k.startswith("config.mesh") for k in given)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8" if meshed else "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bljust_jax.main", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"


def make_source(given: dict[str, str], folder: pathlib.Path, cache: pathlib.Path | str) -> str:
    """What stands for `--config.init_from` of a command: a run of the same config without it; for
    RUN@STEP the end of its first phase, for a model of transformers its export."""
    first = {k: v for k, v in given.items() if not k.startswith("config.init_")}
    first["workdir"] = "runs/source"
    train([f"--{k}={v}" for k, v in first.items()], folder, cache)
    _, at, _ = given["config.init_from"].rpartition("@")
    if not given["config.init_from"].startswith("/models/"):
        facts = json.loads((folder / "runs" / "source" / "run.json").read_text())
        return f"runs/source@{facts['phases'][0]['steps']}" if at else "runs/source"
    shutil.rmtree(folder / "model", ignore_errors=True)
    options = ["--workdir=runs/source", "--out=model", "--unchecked", "--pretraining"]
    assert importlib.import_module("bljust_jax.export_checkpoint").main(options) == 0
    return "model"


def local_source(value: str) -> str:
    """A source of `folder` in the place of a corpus that is not here, joined ones included."""
    value = value.replace("/data/shards", "shards").replace("/data/LibriSpeech", ".")
    return re.sub(
        r"(librispeech|tedlium|covost|aishell|ami|yodas):[^+\s]+(\+\S+)?", "train.jsonl", value
    )
