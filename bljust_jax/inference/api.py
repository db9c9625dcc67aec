"""Python API of inference: load a trained model, transcribe audio files and arrays."""

import os
import pathlib
from typing import Any

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.inference.audio_files import Failure, Recording, resample
from bljust_jax.inference.load import load_model
from bljust_jax.inference.recognizer import Recognizer, Translator
from bljust_jax.inference.transcriber import Transcript, WindowOptions, transcribe, translate


class SpeechModel:
    """A trained recognizer, or translator, that transcribes files and arrays of any length.

    sample_rate: Hz of the model; other rates are resampled
    name: workdir, task and checkpoint
    """

    def __init__(self, model: Recognizer | Translator, options: WindowOptions | None = None):
        self._model, self._options = model, options or WindowOptions()
        self.sample_rate, self.name = model.sample_rate, model.name

    def transcribe(self, audio: Any, sample_rate: int | None = None) -> Transcript:
        """The text of one utterance or recording, and its words with times.

        Args:
          audio: path of an audio file, or samples [S] or [S, channels]: int16, or floats in
            [-1, 1]. Channels are averaged.
          sample_rate: Hz of the samples; default: that of the model. Not for files.

        Returns:
          Transcript(path, text, words, seconds); each word is Word(word, start, end) in seconds.
          The path of an array is "". A translation has no words.

        Raises:
          UserError: a file that cannot be decoded, or samples of another shape or type.
        """
        if isinstance(audio, str | os.PathLike):
            if sample_rate not in (None, self.sample_rate):
                raise UserError(f"{audio}: a file has its own sample rate: leave sample_rate out")
            source: Any = os.fspath(audio)
        else:
            samples = _checked(np.asarray(audio))
            rate = sample_rate or self.sample_rate
            source = Recording("", resample(samples, rate, self.sample_rate))
        if isinstance(self._model, Recognizer):
            results = transcribe(self._model, [source], self._options)
        else:
            results = translate(self._model, [source], self._options, self._model.beam)
        (result,) = results
        if isinstance(result, Failure):
            raise UserError(result.reason)
        return result


def load_recognizer(path: str | os.PathLike, task: str = "") -> SpeechModel:
    """The model in `path`: the workdir of a training run (best weights of its newest checkpoint),
    or a folder that `bljust export` wrote.

    `task` names one task of a run of several ("asr/en", "st/ar-en"). Raises UserError if `path` is
    neither, is damaged, or has no such task.
    """
    return SpeechModel(load_model(pathlib.Path(path), task))


def _checked(samples: np.ndarray) -> np.ndarray:
    """Samples [S, channels] int16 or float32; UserError for other shapes and types."""
    if samples.ndim not in (1, 2):
        raise UserError(f"audio of shape {samples.shape}: want samples [S] or [S, channels]")
    if samples.dtype != np.int16 and not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"audio of dtype {samples.dtype}: want int16, or floats in [-1, 1]")
    if samples.dtype != np.int16:
        samples = samples.astype(np.float32)
    return samples.reshape(len(samples), -1)
