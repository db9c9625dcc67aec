"""Frame labels by k-means on a layer of a finished run, or on log-mel features: `.km` files.

Label j of an utterance, `RATE` per second, is the class of the encoder's frame at its middle,
(j + 1/2) / RATE s. Log-mel features are normalised per utterance and band, and two neighbouring
frames of 10 ms make one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.common.files import read_arrays, replacing, require_writable, write_text
from bljust_jax.data import sources
from bljust_jax.data.buckets import evaluation_batches
from bljust_jax.data.sources import Utterance
from bljust_jax.data.splits import empty_batch, fill_row
from bljust_jax.inference.trained_run import load_trained_run
from bljust_jax.models import encoders
from bljust_jax.ops import kmeans, log_mel

RATE = 50  # labels per second
LOG_MEL, SAMPLE_RATE, HOP, BANDS = "log_mel", 16000, 160, 40
SAMPLE = 200_000  # frames that k-means learns from
LENGTHS = (2.0, 4.0, 8.0, 16.0)  # seconds that audio is padded to
BATCH_SECONDS = 64.0


class Frames(NamedTuple):
    """What is clustered: `compute(batch) -> (frames [B, T, D], lengths [B])`, one per `stride`
    samples; `name` of the features."""

    name: str
    compute: Callable[[Any], tuple[Any, Any]]
    stride: int
    sample_rate: int


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What was written. `error`: mean squared distance to the centroids over the learned frames, -1
    with given centroids."""

    path: str
    features: str
    utterances: int
    labels: int
    classes: int
    error: float

    def describe(self) -> str:
        return (
            f"{self.path}: {self.labels} labels of {self.utterances} utterances, {RATE} per second,"
            f" {self.classes} classes of {self.features}"
        )


def write_labels(
    uri: str,
    out: pathlib.Path,
    *,
    features: str,
    layer: int = 0,
    classes: int = 100,
    centroids: pathlib.Path | None = None,
    root: str = "",
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> Labelled:
    """Label the utterances of a URI, one line `ID<TAB>labels` each in their order, and write the
    centroids to OUT.npz.

    features: "log_mel", or the workdir of a finished run, whose best weights are used; layer: the
    block whose output is clustered, 0 for half of them; centroids: an OUT.npz instead of learning
    anew, for a dev set with the classes of training; progress: called with utterances done, their
    total and seconds so far. Raises UserError for a run that cannot be loaded, a layer it has not,
    audio that cannot be decoded, and centroids of other features.
    """
    require_writable(out)
    frames = log_mel_frames() if features == LOG_MEL else layer_of_run(features, layer)
    utterances = [u for u in sources.open_source(uri, root) if not u.fault]
    if centroids is None:
        means, error = _learn(frames, utterances, classes, seed)
    else:
        means, error = _load(centroids, frames.name), -1.0
    labels, done, seconds = {}, 0, 0.0
    for members, batch in _batches(frames, utterances):
        for u, x in zip(members, batch, strict=True):
            at = (np.arange(round(u.duration * RATE)) + 0.5) * frames.sample_rate / RATE
            index = np.minimum((at // frames.stride).astype(np.int64), len(x) - 1)
            labels[u.id] = kmeans.assign(x, means)[0][index] if len(x) else index[:0]
            done, seconds = done + 1, seconds + u.duration
        progress(done, len(utterances), seconds)
    lines = (f"{u.id}\t{' '.join(map(str, labels[u.id].tolist()))}\n" for u in utterances)
    write_text(out, "".join(lines))
    with replacing(out.with_name(f"{out.name}.npz")) as file:
        np.savez(file, centroids=means, features=frames.name)
    count = sum(map(len, labels.values()))
    return Labelled(str(out), frames.name, len(labels), count, len(means), error)


def log_mel_frames() -> Frames:
    """Log-mel features in pairs, `BANDS` bands each."""

    def compute(batch):
        x, lengths = log_mel.log_mel(batch["audio"], batch["audio_lengths"], n_mels=BANDS)
        x = log_mel.normalise(x, lengths)
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0)))
        return x.reshape(x.shape[0], -1, 2 * BANDS), -(-lengths // 2)

    return Frames(LOG_MEL, jax.jit(compute), 2 * HOP, SAMPLE_RATE)


def layer_of_run(workdir: str, layer: int) -> Frames:
    """The output of block `layer` of a run's encoder in evaluation mode, 0: of half its blocks."""
    run = load_trained_run(pathlib.Path(workdir))
    encoder = encoders.load(run.config.encoder)(run.config)
    if not 0 <= layer <= encoder.blocks:
        raise UserError(f"--layer={layer} must be 1 .. {encoder.blocks}, or 0 for half of them")
    layer = layer or max(1, encoder.blocks // 2)

    def compute(batch):
        audio = batch["audio"], batch["audio_lengths"]
        x, lengths, _ = encoder.features(*audio, keys=None, train=False)
        options = {"context": "full", "input_mask": None, "train": False, "rng": None}
        found = encoder.encode(
            run.weights.params, run.weights.stats, x, lengths, depth=layer, **options
        )
        return found.output, found.lengths

    rate = run.config.data.sample_rate
    return Frames(f"layer {layer} of {run.config.encoder}", jax.jit(compute), encoder.stride, rate)


def _learn(
    frames: Frames, utterances: Sequence[Utterance], classes: int, seed: int
) -> tuple[np.ndarray, float]:
    """(centroids, error) of the frames of utterances drawn at random, about `SAMPLE` of them."""
    order = np.random.default_rng(seed).permutation(len(utterances))
    lengths = np.array([utterances[i].duration for i in order]) * frames.sample_rate / frames.stride
    drawn = sorted(order[: int(np.searchsorted(np.cumsum(lengths), SAMPLE)) + 1].tolist())
    parts = [x for _, batch in _batches(frames, [utterances[i] for i in drawn]) for x in batch]
    try:
        return kmeans.learn(np.concatenate(parts), classes, seed)
    except ValueError as error:
        raise UserError(f"--classes={classes}: {error}; lower it, or give more audio") from error


def _load(path: pathlib.Path, features: str) -> np.ndarray:
    try:
        found = read_arrays(path)
        means, name = found["centroids"], str(found["features"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--centroids={path}: no file that --labels has written") from error
    if name != features:
        raise UserError(f"--centroids={path}: they are of {name}, not of {features}")
    return means


def _batches(
    frames: Frames, utterances: Sequence[Utterance]
) -> Iterator[tuple[list[Utterance], list[np.ndarray]]]:
    """(utterances, the frames [T, D] of each) per batch."""
    rate = frames.sample_rate
    durations = [u.duration for u in utterances]
    for bucket, indices in evaluation_batches(durations, LENGTHS, BATCH_SECONDS):
        members = [utterances[i] for i in indices]
        batch = empty_batch(bucket, bucket.batch_size, rate)
        for row, u in enumerate(members):
            fill_row(batch, row, row, sources.read_audio(u, rate))
        x, lengths = jax.device_get(frames.compute(batch))
        yield members, [x[row, : lengths[row]] for row in range(len(members))]
