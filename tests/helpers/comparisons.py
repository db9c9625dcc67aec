"""A small grid, and children that write what a finished run leaves, without training."""

import json
import zlib

from bljust_jax.comparison.grid import Grid, Tune
from tests.helpers import corpora

SPACE = {
    "supervised": {"lr.supervised.peak": (1e-3, 2e-3, 3e-3)},
    "bljust": {
        "lr.joint.peak": (1e-3, 2e-3),
        "penalty.cap,penalty.slope": ((0.3, 0.1), (1.0, 0.3)),
    },
}
TUNE = Tune(trials=2, dev="train.jsonl", held_back=1, amount=2, tflop=0.001, space=SPACE)
REFERENCES = ("one two three", "four five", "six")


def grid(folder, **changes):
    """Two methods, two draws, one seed, on the manifests of a folder."""
    fields = {"data.train": f"{folder}/train.jsonl", "data.dev": f"{folder}/dev.jsonl"}
    made = Grid(
        name="small",
        config="quickstart:smoke",
        fields={**fields, "data.root": "", "data.test": ""},
        methods={"supervised": {}, "bljust": {}},
        amount="data.labelled_speakers",
        amounts=(2,),
        draws=(0, 1),
        seeds=(0,),
        tflops=(0.002,),
        references=("supervised",),
    )
    return made._replace(**changes)


def corpus(folder):
    """Manifests train.jsonl and dev.jsonl of a folder, with the references of `Child`."""
    corpora.noise(folder)
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    entries = [
        rows[n] | {"id": f"d{n}", "text": text, "speaker": f"t{n % 2}"}
        for n, text in enumerate(REFERENCES)
    ]
    corpora.write(folder, "dev", entries)
    return folder


class Child:
    """A run that ends at once with a code; with 0 it is finished."""

    def __init__(self, job, slot, *, code=0, tflop=None, edit=lambda final: None):
        self.job, self.slot, self._code, self.signals = job, slot, code, []
        job.workdir.mkdir(parents=True, exist_ok=True)
        job.log.write_text("error: configured wrongly\n" if code else "")
        if code == 0:
            write_run(job.workdir, job.run, tflop or job.run.tflop, edit)

    def poll(self):
        return self._code

    def wait(self, timeout=None):
        return self._code

    def send_signal(self, number):
        self.signals.append(number)
        self._code = 75


def draw(name):
    """1, 2 or 3, by the name alone."""
    return 1 + zlib.crc32(name.encode()) % 3


def write_run(workdir, run, tflop, edit=lambda final: None):
    """The files of a finished run, whose errors depend on its name alone."""
    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text("{}")
    facts = {"versions": {"jax": "1"}, "devices": "1 x cpu"}
    (workdir / "run.json").write_text(json.dumps(facts))
    wrong = draw(run.name)
    pairs = [
        {"id": f"d{n}", "reference": text, "hypothesis": " ".join(text.split()[min(wrong, n) :])}
        for n, text in enumerate(REFERENCES)
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (workdir / "samples" / "dev-best.jsonl").write_text(lines)
    final = {"step": 8, "final": True, "dev/wer": wrong / 6, "dev/cer": wrong / 12}
    final |= {"compute/tflop": tflop, "compute/encoder_tflop": 0.9 * tflop, "perf/wall_s": 12.0}
    final |= {"compute/audio_hours": 0.1, "compute/updates/ctc": 8, "params_digest": run.name}
    edit(final)
    rows = [{"step": 4, "compute/tflop": tflop / 2, "perf/steps_per_s": 2.0}, final]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
