"""Files of training runs, as the report reads them."""

import json

import numpy as np

PHASES = [
    {"name": "explore", "start": 0, "steps": 40, "levels": "cpc"},
    {"name": "joint", "start": 40, "steps": 60, "levels": "ctc > cpc"},
]
PAIRS = [
    {"id": "a", "reference": "one two three", "hypothesis": "one two three"},
    {"id": "b", "reference": "one two three", "hypothesis": "four"},
    {"id": "c", "reference": "one two", "hypothesis": "one to"},
]


def train_rows(last=100):
    """A row every 10 steps at 2 steps a second: cpc up to step 40, then both losses."""
    rows = []
    for step in range(10, last + 1, 10):
        row = {"step": step, "train/cpc/loss": 4.0 - step / 100, "moo/norm/cpc": 1.0 + step}
        row |= {"lr/encoder": 1e-3, "train/skipped": 0.0, "perf/steps_per_s": 2.0}
        row |= {"compute/encoder_tflop": step / 50, "compute/audio_hours": step / 1000}
        row |= {"compute/updates/cpc": step}
        if step > 40:
            row |= {"train/ctc/loss": 300.0 / step, "moo/norm/ctc": 2.0, "moo/cos/ctc|cpc": 0.25}
            row |= {"penalty/1": step / 1000, "compute/updates/ctc": step - 40}
        rows.append(row)
        if step % 50 == 0:
            rows.append({"step": step, "dev/wer": 50 / step, "dev/cer": 25 / step})
    return rows


FINAL = {"step": 100, "final": True, "best_step": 100, "params_digest": "00ff", "dev/wer": 0.5}
FINAL |= {"dev/cer": 0.25, "dev/substitutions": 3, "dev/words": 8, "dev/clean/wer": 0.125}


def example():
    """Three frames of 40 ms over 12 of 10 ms: "a b" recognised as "b b"; a space is class 1."""
    log_probs = np.log(np.full((5, 4), 1e-4))
    log_probs[[0, 1, 2, 3, 4], [3, 0, 1, 3, 0]] = 0.0
    found = {"id": "x", "reference": "a b", "hypothesis": "b b", "symbols": [" ", "a", "b"]}
    found |= {"log_mel": np.zeros((20, 8), np.float16), "log_probs": log_probs}
    found |= {"labels": [2, 1, 3], "starts": [0, 2, 3], "ends": [2, 3, 4]}
    found |= {"mel_hz": np.linspace(100, 3900, 8)}
    found |= {"mel_seconds": 0.01, "frame_seconds": 0.04}
    return {name: np.array(value) for name, value in found.items()}


def make_run(folder, *, finished=True, method="bljust", rows=None):
    (folder / "samples").mkdir(parents=True)
    config = {"recipe": "bljust", "method": method, "seed": 3}
    (folder / "config.json").write_text(json.dumps(config))
    rows = (train_rows() if rows is None else rows) + [FINAL] * finished
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (folder / "samples" / "dev-best.jsonl").write_text(samples)
    return folder
