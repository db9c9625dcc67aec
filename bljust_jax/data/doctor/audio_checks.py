"""Checks of decoded audio: each function yields the items with a fault and a detail in words."""

from collections import Counter
from collections.abc import Iterator

from bljust_jax.data.containers import CANCELLED, SLACK
from bljust_jax.data.doctor.survey import Item, Survey

Faults = Iterator[tuple[Item, str]]

SILENT = -60.0  # dBFS, 95th percentile of the power of frames: speech at a distance is above -45
CLIPPED = 0.002  # share of samples within 1 % of the peak; of speech that is not clipped <= 0.001
MANY = 12  # samples within 1 % of the peak that a clipped utterance has at least
OFFSET = 0.01  # of full scale; converters have less than 0.001
UNEVEN = 0.01  # power of a channel over that of the loudest, 20 dB less
APART = 0.75  # power of the mean of channels over the loudest: 0.5 if they are independent


def undecodable(survey: Survey) -> Faults:
    for item in survey.items:
        if item.audio.error:
            yield item, f"{item.utterance.path}: {item.audio.error}"


def empty(survey: Survey) -> Faults:
    for item in survey.items:
        if not item.audio.error and not item.audio.seconds:
            yield item, f"{item.utterance.path} holds no audio at {item.utterance.offset:g} s"


def not_finite(survey: Survey) -> Faults:
    for item in survey.readable:
        if item.audio.not_finite:
            yield item, f"{item.audio.not_finite} samples"


def header_length(survey: Survey) -> Faults:
    for item in survey.items:
        if item.audio.header:
            yield item, item.audio.header


def duration(survey: Survey) -> Faults:
    """An entry is compared with what its file holds from its offset on. One that is shorter than
    its file is right if it has an offset, or if others share the file."""
    shared = Counter(item.utterance.path for item in survey.items)
    for item in survey.readable:
        u, audio = item.utterance, item.audio
        whole = not u.offset and shared[u.path] == 1
        missing = u.duration - audio.seconds
        beyond = audio.file_seconds - u.duration if whole else 0.0
        if u.duration and not audio.header and max(missing, beyond) > SLACK:
            held = audio.file_seconds if beyond > SLACK else audio.seconds
            yield item, f"{u.duration:.2f} s, the file holds {held:.2f} s"


def silent(survey: Survey) -> Faults:
    for item in survey.readable:
        if item.audio.loud < SILENT and item.audio.mono >= CANCELLED:
            yield item, f"loudest frames at {item.audio.loud:.0f} dBFS"


def clipped(survey: Survey) -> Faults:
    for item in survey.readable:
        audio = item.audio
        many = audio.near_peak * audio.seconds * audio.rate >= MANY
        if audio.near_peak > CLIPPED and many and audio.loud >= SILENT:
            share = f"{audio.near_peak:.1%} of the samples are at the peak, {audio.peak:.2f}"
            yield item, f"{share} of full scale"


def offset(survey: Survey) -> Faults:
    for item in survey.readable:
        if abs(item.audio.mean) > OFFSET:
            yield item, f"mean {item.audio.mean:+.3f} of full scale"


def sample_rate(survey: Survey) -> Faults:
    rates = Counter(item.audio.rate for item in survey.readable)
    usual = max(rates, key=lambda rate: rates[rate], default=0)
    for item in survey.readable:
        rate = item.audio.rate
        if rate < survey.sample_rate or rate != usual:
            wanted = f"{survey.sample_rate} Hz are wanted" if rate < survey.sample_rate else ""
            yield item, f"{rate} Hz; {wanted or f'most files have {usual} Hz'}"


def channels(survey: Survey) -> Faults:
    numbers = Counter(item.audio.channels for item in survey.readable)
    usual = max(numbers, key=lambda number: numbers[number], default=1)
    for item in survey.readable:
        audio = item.audio
        if audio.channels == 1 and usual == 1:
            continue
        if audio.mono < CANCELLED:
            yield item, f"{audio.channels} channels that cancel each other"
        elif audio.balance < UNEVEN:
            yield item, f"{audio.channels} channels, one of them nearly silent"
        elif audio.mono < APART:
            yield item, f"{audio.channels} channels of different signals"
        elif audio.channels != usual:
            yield item, f"{audio.channels} channels; most files have {usual}"
