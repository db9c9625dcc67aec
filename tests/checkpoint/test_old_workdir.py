"""Workdirs of earlier versions are evaluated and resumed with the same results.

`fixtures/workdir_1` is a run of `FIELDS` on `corpora.tones`, stopped by a SIGTERM before step 202
of 204: its config.json, run.json, metrics.jsonl, tokenizer and newest checkpoint. The numbers below
are those that the code which made it gave: of its best weights, those of step 150, and of the last
two steps of a run that nothing had stopped. Do not make it anew where a test fails: someone's
finished run would then fail the same way.
"""

import json
import pathlib
import shutil
import tarfile

import pytest

from bljust_jax import evaluate as command
from bljust_jax.checkpoint.manager import FORMAT
from bljust_jax.common.trees import digest
from bljust_jax.inference.trained_run import load_trained_run
from bljust_jax.monitoring import metrics
from bljust_jax.train import loop
from configs import quickstart
from tests.helpers import corpora

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "workdir_1"
RUN = pathlib.Path("run")
FIELDS = {
    **{"data.train": "train.jsonl", "data.dev": "dev.jsonl", "data.test": ""},
    **{"data.sample_rate": 8000, "data.buckets": (0.5,), "data.batch_seconds": 8.0},
    **{"data.unlabelled_batch_seconds": 8.0, "features.n_mels": 8, "features.window": 200},
    **{"features.hop": 80, "features.n_fft": 256, "specaugment.freq_masks": 0},
    **{"specaugment.time_masks": 0, "model.dim": 8, "model.layers": 1, "model.heads": 1},
    **{"model.channels": 4, "model.kernel": 3, "cpc.width": 8, "cpc.steps": 2},
    **{"phases.explore": 4.0, "phases.joint": 200.0, "phases.finetune": 0.0},
    **{"lr.joint.peak": 0.01, "eval_every": 50, "save_every": 100, "log_every": 2, "keep": 1},
    **{"mesh.data": 1, "compile_cache": ""},
    **{"lr.explore.warmup": 10.0, "lr.explore.warmup_unit": "step"},  # as it was then
    "ema_share": 0.0,  # its average is that of ema_decay alone; another default is a refusal
    "data.text.normalise": ("lower",),  # likewise
}
SCORES = {"dev/wer": 0.25, "dev/cer": 0.25, "dev/deletions": 1, "dev/insertions": 0}
SCORES |= {"dev/substitutions": 0, "dev/words": 4, "dev/utterances": 4, "dev/blank_share": 0.45}
LAST = {
    **{"train/ctc/loss": 0.13897938, "train/cpc/loss": 1.91288112, "moo/norm/ctc": 1.43162090},
    **{"moo/norm/cpc": 0.99196625, "moo/cos/ctc|cpc": 0.06634198, "penalty/1": 0.3},
    **{"lr/encoder": 0.01, "lr/cpc_head": 0.01, "compute/encoder_tflop": 0.001128148992},
    **{"compute/updates/ctc": 200, "compute/updates/cpc": 204, "data/quarantined": 0},
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The workdir `RUN` of the current folder, beside its audio."""
    shutil.copytree(FIXTURE, tmp_path / RUN)
    with tarfile.open(tmp_path / RUN / "checkpoints.tar.gz") as packed:
        packed.extractall(tmp_path / RUN, filter="data")
    monkeypatch.chdir(corpora.tones(tmp_path))


def test_it_is_evaluated_as_it_was(old):
    weights = load_trained_run(RUN).weights
    assert digest(weights) == "0949fe52fcaebc1d", "its best weights, bit for bit"
    args = command.parser().parse_args(["--workdir", str(RUN)])
    found = command.evaluate(args, lambda line: None)
    assert (found["step"], found["task"], found["normalise"]) == (202, "", ["lower"])
    assert {name: found["best_path"][name] for name in SCORES} == SCORES
    pairs = (RUN / "samples" / "dev-beam.jsonl").read_text().splitlines()
    heard = {pair["reference"]: pair["best_path"] for pair in map(json.loads, pairs)}
    assert heard == {"ab": "ab", "bb": "", "cb": "cb", "db": "db"}


@pytest.mark.slow
def test_it_is_trained_to_its_end_as_it_was(old):
    """The config is made from this code's defaults: a field that is new, gone or of another value
    is a refusal, and each of them a user's. Two steps of another machine's float32."""
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict(FIELDS)
    before = metrics.read(RUN / "metrics.jsonl")
    final = loop.run(config, RUN)
    assert (final["step"], final["best_step"]) == (204, 150)
    assert {name: final[name] for name in SCORES} == SCORES
    rows = metrics.read(RUN / "metrics.jsonl")
    assert rows[: len(before)] == before
    last = next(row for row in rows if row["step"] == 204 and "train/ctc/loss" in row)
    for name, expected in LAST.items():
        # a cosine of two gradients is near 0: its rounding is relative to 1
        near = {"abs": 2e-3} if name.startswith("moo/cos/") else {"rel": 2e-3}
        assert last[name] == pytest.approx(expected, **near), name
    assert digest(load_trained_run(RUN).weights) == "0949fe52fcaebc1d", "still the best"


def test_there_is_a_workdir_of_each_earlier_format():
    """When `FORMAT` is raised, keep a workdir of the last one here, made by the code before."""
    kept = {path.name for path in FIXTURE.parent.glob("workdir_*")}
    assert kept == {f"workdir_{version}" for version in range(1, FORMAT)}
