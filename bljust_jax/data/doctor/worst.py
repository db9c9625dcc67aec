"""The utterances of a corpus to listen to first, with their audio encoded for a browser."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import soundfile

from bljust_jax.data.doctor.checks import ERROR, Finding
from bljust_jax.data.doctor.survey import Item, Survey
from bljust_jax.data.doctor.text_checks import characters_per_second
from bljust_jax.data.sources import read_audio

NUMBER = 20
LONGEST = 10.0  # seconds of audio per utterance
RATE = 16000
TYPES = {"MP3": "audio/mpeg", "OGG": "audio/ogg", "WAV": "audio/wav"}  # in order of preference
SPREAD = 1.4826  # median absolute deviation to standard deviation of a normal distribution


class Sample(NamedTuple):
    """reasons: the findings of an item, or in what it is unusual."""

    item: Item
    reasons: list[str]


def worst(survey: Survey, findings: Sequence[Finding], number: int = NUMBER) -> list[Sample]:
    """The items with most findings, errors first, then those furthest from the medians of speaking
    rate, level and length; only such that have audio."""
    reasons: dict[int, list[str]] = {}
    weights: dict[int, int] = {}
    for check, found in findings:
        for item, detail in found:
            reasons.setdefault(id(item), []).append(f"{check.name}: {detail}")
            weight = 2 if check.severity == ERROR else 1
            weights[id(item)] = weights.get(id(item), 0) + weight
    unusual = _unusual(survey)
    ranked = sorted(
        survey.readable, key=lambda item: (-weights.get(id(item), 0), -unusual[id(item)][0])
    )
    return [Sample(i, reasons.get(id(i), [unusual[id(i)][1]])) for i in ranked[:number]]


def _unusual(survey: Survey) -> Mapping[int, tuple[float, str]]:
    """{id of an item: (largest distance from a median in deviations, in words)}"""
    items = survey.readable
    rates = [characters_per_second(item) if item.text else np.nan for item in items]
    seconds = np.array([item.audio.seconds for item in items])
    found = {id(item): (0.0, "near the median") for item in items}
    columns = {
        "{:.1f} characters per second": (np.array(rates), np.log),
        "loud frames at {:.0f} dBFS": (np.array([i.audio.loud for i in items]), np.asarray),
        "{:.1f} s of audio": (seconds, np.log),
    }
    for words, (values, scale) in columns.items():
        if not np.isfinite(values).any():
            continue
        scaled = scale(values)
        distances = np.abs(scaled - np.nanmedian(scaled))
        spread = max(float(np.nanmedian(distances)) * SPREAD, 1e-6)
        for item, value, distance in zip(items, values, distances / spread, strict=True):
            if distance > found[id(item)][0]:
                found[id(item)] = float(distance), f"unusual: {words.format(value)}"
    return found


def clip(item: Item) -> tuple[str, bytes] | None:
    """(media type, encoded file) of the first `LONGEST` seconds; None for samples that are not
    finite."""
    seconds = min(item.audio.seconds, LONGEST)
    if item.audio.not_finite:
        return None
    samples = read_audio(dataclasses.replace(item.utterance, duration=seconds), RATE)
    container = next(name for name in TYPES if name in soundfile.available_formats())
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=container)
    return TYPES[container], file.getvalue()
