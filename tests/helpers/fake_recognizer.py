"""A recognizer that reads its classes off the audio, and the audio that spells a text for it."""

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.inference import recognizer

RATE, FRAME, LEVEL = 16000, 640, 1000
SECOND = RATE // FRAME  # frames
TOKENIZER = CharTokenizer(" abcdefghijklmnopqrst", ())
CLASSES = TOKENIZER.vocab_size


def sound(*pieces, frames=0):
    """Audio of 40 ms frames: (place, text) writes the classes of a text, "_" the blank, at a
    place."""
    path = np.zeros(max(frames, *(at + len(text) for at, text in pieces)), np.int16)
    for at, text in pieces:
        classes = [("_", *TOKENIZER.symbols).index(c) for c in text]
        path[at : at + len(text)] = classes
    return np.repeat(path * LEVEL, FRAME)


@jax.jit
def classes_of_means(audio, lengths):
    """Class n for a frame whose mean is n * LEVEL, with logits one-hot times 9."""
    frames = audio.shape[1] // FRAME
    blocks = audio[:, : frames * FRAME].reshape(-1, frames, FRAME)
    found = jnp.round(jnp.mean(blocks.astype(jnp.float32), axis=2) / LEVEL)
    logits = 9.0 * (found[..., None] == jnp.arange(CLASSES)[None, None, :])
    return logits, lengths // FRAME


def fake(predict=classes_of_means, frames=lambda samples: samples // FRAME):
    """A recogniser that hears only what it hears now, and the shapes of the batches it is given."""
    shapes = []

    def spy(batch):
        shapes.append(batch["audio"].shape)
        return predict(batch["audio"], batch["audio_lengths"])

    made = recognizer.Recognizer(
        spy, TOKENIZER.decode, TOKENIZER.symbols, frames, sample_rate=RATE, name="fake"
    )
    return made, shapes


def store(path, audio, rate=RATE, **how):
    soundfile.write(path, audio, rate, **how)
    return str(path)
