"""example.npz: log-mel features, posteriors and alignment of one utterance, for a report.

Plain arrays, no pickle.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel.types import Weights
from bljust_jax.common.files import replacing
from bljust_jax.data.augment import chain
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.sources import Utterance, read_audio
from bljust_jax.data.splits import Batch, empty_batch, fill_row
from bljust_jax.decoding import greedy
from bljust_jax.ops.ctc import ctc_align
from bljust_jax.ops.log_mel import band_corners
from bljust_jax.ops.specaugment import specaugment

PROBE = (20, 40)  # seconds of audio; their frame counts differ by whole hops


def make(
    predict: Callable[..., tuple[Any, Any]],
    log_mel: Callable[..., tuple[Any, Any]],
    weights: Weights,
    corpus: Any,
    split: str,
    name: str,
    sample_rate: int,
) -> dict[str, np.ndarray]:
    """Recognise and align the utterance with id `name` of `split` (see `utterances.typical`).

    `predict` is that of a task. `log_mel(audio [1, S], lengths [1]) -> (features [1, T, M], frames
    [1])` does not normalise. The row is padded to whole seconds. Returns

    id, reference, hypothesis       texts, 0-d; the hypothesis is that of the best path
    symbols        [K - 1]          text of class n + 1; class 0 is the blank
    log_mel        [T, M]  float16  natural logarithms of mel energies
    mel_hz         [M]     float32  peaks of the bands
    log_probs      [T', K] float16  log softmax of the logits
    labels         [U]     int32    classes of the reference
    starts, ends   [U]     int32    frames of each label on the best path, end exclusive
    mel_seconds, frame_seconds      seconds between two rows, 0-d
    """
    utterance = next(u for u in corpus.utterances(split) if u.id == name)
    tokenizer = corpus.tokenizer_of(split)
    reference = tokenizer.normalise(utterance.text or "")
    audio = read_audio(utterance, sample_rate)
    batch = one_row(-(-len(audio) // sample_rate), sample_rate)
    fill_row(batch, 0, 0, audio)
    labels = tokenizer.encode(reference)[None]

    def spectrum(batch):
        return log_mel(batch["audio"], batch["audio_lengths"])

    @jax.jit
    def align(weights, batch):
        logits, lengths = predict(weights.params, weights.stats, batch)
        aligned = ctc_align(logits, lengths, labels, jnp.array([labels.shape[1]]))
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        mel, mel_lengths = spectrum(batch)
        return log_probs[0], lengths[0], mel[0], mel_lengths[0], aligned

    log_probs, frames, mel, mel_frames, aligned = jax.device_get(align(weights, batch))
    path = np.argmax(log_probs[:frames], axis=1)
    forward = functools.partial(predict, weights.params, weights.stats)
    return {
        "id": np.array(name),
        "reference": np.array(reference),
        "hypothesis": np.array(tokenizer.decode(greedy.collapse(path))),
        "symbols": np.array(tokenizer.symbols),
        "log_mel": mel[:mel_frames].astype(np.float16),
        "mel_hz": band_corners(sample_rate, mel.shape[1])[1:-1].astype(np.float32),
        "log_probs": log_probs[:frames].astype(np.float16),
        "labels": labels[0],
        "starts": aligned.starts[0],
        "ends": aligned.ends[0],
        "mel_seconds": np.array(frame_seconds(spectrum, sample_rate)),
        "frame_seconds": np.array(frame_seconds(forward, sample_rate)),
    }


def augmented(
    log_mel: Callable[..., tuple[Any, Any]], utterance: Utterance, config: Any
) -> dict[str, np.ndarray]:
    """What the encoder receives of an utterance in training, for `make`'s arrays; {} without
    augmentation.

    augmented [T, M] float16: of the augmented audio; masked [T, M] float16: also with the masks of
    SpecAugment, at the mean of each band, as CTC reads it; steps: names of what is applied, 0-d
    """
    audio, steps = chain.preview(utterance, config.data, config.seed)
    masks = dict(config.specaugment)
    if config.encoder == "wav2vec2":  # reads no log-mel; it masks its latents
        masks |= {"freq_masks": 0, "time_masks": 0}
    if masks["freq_masks"] + masks["time_masks"]:
        steps = [*steps, "SpecAugment"]
    if not steps:
        return {}
    rate = config.data.sample_rate
    batch = one_row(-(-len(audio) // rate), rate)
    fill_row(batch, 0, 0, audio)

    @jax.jit
    def spectra(batch):
        mel, lengths = log_mel(batch["audio"], batch["audio_lengths"])
        real = jnp.arange(mel.shape[1]) < lengths[0]
        total = jnp.sum(mel[0] * real[:, None], axis=0, keepdims=True)
        mean = (total / jnp.maximum(lengths[0], 1))[None]
        keys = jax.random.split(jax.random.key(config.seed), 1)
        masked = specaugment(mel - mean, lengths, keys, **masks) + mean
        return mel[0], masked[0], lengths[0]

    mel, masked, frames = jax.device_get(spectra(batch))
    return {
        "augmented": mel[:frames].astype(np.float16),
        "masked": masked[:frames].astype(np.float16),
        "steps": np.array(", ".join(steps)),
    }


def write(path: pathlib.Path, example: dict[str, np.ndarray]) -> None:
    """Write the arrays of `make`; read them with `files.read_arrays`."""
    with replacing(path) as file:
        np.savez_compressed(file, **example)


def one_row(seconds: int, rate: int) -> Batch:
    """An empty batch with room for one utterance."""
    return empty_batch(Bucket(float(seconds), 1, 0), 1, rate)


def frame_seconds(function: Callable[[dict], tuple[Any, Any]], rate: int) -> float:
    """Seconds between two frames of `function(batch) -> (x [B, T, ...], lengths)`, from the shapes
    of its results for two lengths of audio; nothing is computed."""
    frames = [jax.eval_shape(function, one_row(seconds, rate))[0].shape[1] for seconds in PROBE]
    return (PROBE[1] - PROBE[0]) / (frames[1] - frames[0])
