"""Benchmark of reading FLAC audio: hours decoded per second, wait of a step for its batch."""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bljust_jax.benchmarks import step
from bljust_jax.benchmarks.interleave import table
from bljust_jax.common.files import write_text
from configs import defaults

RATE = 16000
FILES, SECONDS = 60, 12.0
BATCHES = 20  # of each measurement


def write_corpus(folder: pathlib.Path, files: int = FILES, seconds: float = SECONDS) -> str:
    """Write FLAC files about as compressible as speech (harmonics of a moving pitch under an
    envelope, with noise) and a manifest; returns the path of the manifest."""
    import soundfile

    rng = np.random.default_rng(0)
    lines = []
    for n in range(files):
        t = np.arange(round(seconds * RATE)) / RATE
        pitch = 120 + 30 * np.sin(2 * np.pi * 0.4 * t + rng.uniform(0, 6))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        voice = sum(np.sin(h * phase) / h for h in range(1, 20))
        envelope = np.clip(np.sin(2 * np.pi * 2 * t + rng.uniform(0, 6)), 0, 1)
        audio = 0.1 * envelope * voice + 0.002 * rng.standard_normal(t.size)
        name = f"{n}.flac"
        soundfile.write(folder / name, np.int16(32767 * np.clip(audio, -1, 1)), RATE)
        lines.append({"audio_filepath": name, "duration": seconds, "text": "one two three"})
    manifest = folder / "train.jsonl"
    write_text(manifest, "".join(json.dumps(line) + "\n" for line in lines))
    return str(manifest)


def make_config(uri: str) -> Any:
    """The default config with this corpus and two buckets."""
    config = defaults.base()
    config.data.update(train=uri, dev=uri, buckets=(15.0, 35.0))
    return config


def batches(config: Any, number: int) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """The first labelled batches of the corpus."""
    from bljust_jax.data.corpus import Segment, load_corpus

    corpus = load_corpus(config.data, seed=config.seed, phases=config.phases)
    return iter(corpus.train_batches([Segment(0, number, ("labelled",))], 0))


def decode(config: Any, number: int) -> dict[str, float]:
    """Hours of audio, without padding, decoded per second over `number` labelled batches."""
    stream = batches(config, number)
    began = time.perf_counter()
    samples = sum(int(batch["labelled"]["audio_lengths"].sum()) for batch in stream)
    seconds = time.perf_counter() - began
    hours = samples / config.data.sample_rate / 3600
    return {"hours": hours, "seconds": seconds, "hours_per_s": hours / seconds}


def wait_share(config: Any, shape: step.Shape, steps: int, log: Callable[[str], None]) -> float:
    """Share of the time of `steps` supervised steps of this size that is spent waiting for data."""
    model = step.make_config(shape, "float32", method="supervised")
    program = step.compile_step(model, "supervised", step.make_batch(shape), log)
    stream, waited, began = batches(config, steps), 0.0, time.perf_counter()
    for _ in range(steps):
        requested = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - requested
        program.run()
    return waited / (time.perf_counter() - began)


def measure(data: str, *, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Rates of decoding in rounds, then the share of waiting. `data` is a corpus as in
    config.data.train; "" generates FLAC files."""
    with tempfile.TemporaryDirectory() as folder:
        if not data:
            log(f"input: writing {FILES} FLAC files of {SECONDS:.0f} s")
            data = write_corpus(pathlib.Path(folder))
        config = make_config(data)
        found = []
        for n in range(rounds):
            found.append(decode(config, BATCHES))
            log(f"  round {n + 1} of {rounds}: {found[-1]['hours_per_s']:.2f} h per second")
        share = wait_share(config, step.SHAPES["cpu"][0], BATCHES, log)
    rates = [row["hours_per_s"] for row in found]
    return {
        "hours_per_s": {"max": max(rates), "median": statistics.median(rates)},
        "threads": config.data.num_threads,
        "hours_a_round": found[0]["hours"],
        "wait_share": share,
    }


def describe(result: dict[str, Any]) -> list[str]:
    """The table, in lines of at most 100 columns."""
    row = {
        "": "decoding",
        "threads": result["threads"],
        "max h/s": result["hours_per_s"]["max"],
        "median h/s": result["hours_per_s"]["median"],
        "wait share of a step": result["wait_share"],
    }
    return ["input: hours of FLAC audio decoded per second", table([row])]
