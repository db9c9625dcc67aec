"""Pictures of one utterance of example.npz: CTC posteriors with alignment, and spectrogram."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bljust_jax.reporting.plots.style import RED, WIDTH, legible, title

DECIBELS = 10 / math.log(10)  # dB per natural logarithm of an energy
BLANK = "blank"
FREQUENCIES = (250, 500, 1000, 2000, 4000, 8000)  # Hz, labelled on a spectrogram
SHOWN = 40  # symbols beside those of the reference, at most in all
LANES = 3  # lines of text above the bars of words
CHARACTER = 0.0095  # width of a character as a fraction of the axes
Timed = tuple[str, float, float]  # word, start, end in seconds
MARK = "\u2581"  # start of a word in SentencePiece's pieces


def _alignment(example: Mapping[str, np.ndarray]) -> Figure:
    """P(symbol | frame) of the symbols of `_shown_ids`, with boxes on the best path of the
    reference."""
    posterior = np.exp(example["log_probs"].astype(np.float32)).T  # [K, T']
    frame = float(example["frame_seconds"])
    ids = _shown_ids(posterior, example["labels"])
    rows = {k: n for n, k in enumerate(ids)}
    figure = Figure((WIDTH, 1.6 + 0.22 * max(len(ids), 8)))
    axes = figure.subplots()
    extent = (0.0, posterior.shape[1] * frame, len(ids) - 0.5, -0.5)
    image = axes.imshow(
        posterior[ids], aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    for k, start, end in zip(example["labels"], example["starts"], example["ends"], strict=True):
        corner = (start * frame, rows[int(k)] - 0.5)
        axes.add_patch(
            Rectangle(corner, (end - start) * frame, 1.0, fill=False, edgecolor=RED, linewidth=1.3)
        )
    names = [BLANK, *example["symbols"].tolist()]
    shown = ["space" if names[k] == " " else legible(names[k].replace(MARK, "_")) for k in ids]
    axes.set_yticks(range(len(ids)), shown)
    axes.grid(False)
    axes.set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="posterior", pad=0.01)
    title(figure, "CTC posterior; boxes: best alignment of the reference")
    return figure


def _shown_ids(posterior: Float[np.ndarray, "k t"], labels: np.ndarray) -> list[int]:
    """Classes in the order of the reference, then those with a posterior above 0.3 in some frame,
    then the blank."""
    needed = dict.fromkeys(int(k) for k in labels)
    peaks = posterior.max(axis=1)
    likely = [int(k) for k in np.argsort(-peaks) if peaks[k] > 0.3 and k != 0]
    return [*list(needed | dict.fromkeys(likely))[: max(SHOWN, len(needed))], 0]


def _spectrogram(example: Mapping[str, np.ndarray]) -> Figure:
    """Log-mel energies; below them the words of the reference at their aligned times, and those of
    the best path at the times of its labels."""
    log_mel, hop = example["log_mel"].astype(np.float32), float(example["mel_seconds"])
    figure = Figure((WIDTH, 5.6))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1.0))
    extent = (0.0, len(log_mel) * hop, 0.0, log_mel.shape[1])
    image = top.imshow(
        DECIBELS * log_mel.T, aspect="auto", origin="lower", extent=extent,
        cmap=matplotlib.colormaps["magma"].resampled(32), interpolation="nearest",
    )  # fmt: skip
    top.set_ylabel("mel band")
    if "mel_hz" in example:  # absent from runs before there was one
        top.set_ylabel("frequency (Hz), mel scale")
        top.set_yticks(*_frequencies(example["mel_hz"]))
    top.grid(False)
    figure.colorbar(image, ax=top, label="energy (dB)", pad=0.01)
    frame = float(example["frame_seconds"])
    names = ["", *example["symbols"].tolist()]
    best = best_path_spans(example["log_probs"])
    spans = zip(example["labels"], example["starts"], example["ends"], strict=True)
    true_words = timed([(names[int(k)], *times) for k, *times in spans], frame)
    best_words = timed([(names[k], *times) for k, *times in best], frame)
    known = {word for word, _, _ in true_words}
    for y, found in ((1, true_words), (0, best_words)):
        _word_row(below, y, found, known, letter=CHARACTER * extent[1])
    below.set_yticks([1, 0], ["reference", "hypothesis"])
    below.set_ylim(-0.3, 1.9)
    below.set_xlim(0.0, extent[1])
    below.grid(False)
    below.spines["left"].set_visible(False)
    below.tick_params(left=False)
    below.set_xlabel("time (s)")
    title(figure, "Log-mel spectrogram; words as aligned and as recognised")
    return figure


def _frequencies(mel_hz: Float[np.ndarray, "m"]) -> tuple[list[float], list[str]]:
    """(places on an axis of M bands, labels) of round frequencies in Hz."""
    shown = [hertz for hertz in FREQUENCIES if mel_hz[0] <= hertz <= mel_hz[-1]]
    bands = np.arange(len(mel_hz)) + 0.5
    return np.interp(shown, mel_hz, bands).tolist(), [f"{hertz:,}" for hertz in shown]


def _augmentation(example: Mapping[str, np.ndarray]) -> Figure | None:
    """Log-mel energies as recorded, as augmented, and as masked by SpecAugment, on one scale; None
    for a run without augmentation."""
    if "augmented" not in example:
        return None
    panels = {
        "as recorded": example["log_mel"],
        "augmented": example["augmented"],
        "augmented and masked": example["masked"],
    }
    hop = float(example["mel_seconds"])
    low, high = np.percentile(DECIBELS * example["augmented"].astype(np.float32), [1, 99.8])
    figure = Figure((WIDTH, 7.0))
    axes = figure.subplots(len(panels), 1, sharex=True)
    for own, (name, mel) in zip(axes, panels.items(), strict=True):
        extent = (0.0, len(mel) * hop, 0.0, mel.shape[1])
        image = own.imshow(
            DECIBELS * mel.astype(np.float32).T, aspect="auto", origin="lower", extent=extent,
            cmap=matplotlib.colormaps["magma"].resampled(32), interpolation="nearest",
            vmin=low, vmax=high,
        )  # fmt: skip
        own.set_title(name, loc="left", fontsize=11)
        own.set_ylabel("frequency (Hz)")
        own.set_yticks(*_frequencies(example["mel_hz"]))
        own.grid(False)
    longest = max(len(mel) for mel in panels.values())
    axes[-1].set_xlim(0.0, longest * hop)
    axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=list(axes), label="energy (dB)", pad=0.01)
    title(figure, f"What the encoder receives in training: {example['steps']}")
    return figure


def _word_row(axes: Axes, y: int, found: list[Timed], known: set[str], letter: float) -> None:
    """Words above bars of their times, those not in `known` in orange and bold; a word that would
    overlap the last one, at `letter` seconds per character, moves up a line."""
    until = [0.0] * LANES
    for word, start, end in found:
        half = letter * len(word) / 2
        left, right = (start + end) / 2 - half, (start + end) / 2 + half
        free = [lane for lane in range(LANES) if until[lane] <= left]
        lane = free[0] if free else until.index(min(until))
        until[lane] = right
        colour = "black" if word in known else RED
        axes.plot([start, end], [y - 0.1] * 2, color=colour, linewidth=3)
        axes.text(
            *((start + end) / 2, y + 0.04 + 0.25 * lane, legible(word)),
            ha="center",
            color=colour,
            fontsize=10,
            fontweight="normal" if word in known else "bold",
        )


SPEECH = {
    "alignment": (
        _alignment,
        "One utterance of the development set: posterior per symbol (dark = certain), and the best "
        "alignment of the reference (boxes).",
    ),
    "spectrogram": (
        _spectrogram,
        "The same utterance: log-mel energies, the words of the reference at their aligned times, "
        "and the recognised words; orange ones are not in the reference.",
    ),
    "augmentation": (
        _augmentation,
        "The same utterance as training would augment it: log-mel energies as recorded, as the "
        "self-supervised loss reads them, and with the masks of SpecAugment, as CTC does.",
    ),
}


def best_path_spans(log_probs: Float[np.ndarray, "t k"]) -> list[tuple[int, int, int]]:
    """(class, start, end) of the runs of equal best classes over [T, K], without blanks; in frames,
    end exclusive."""
    found, start = [], 0
    for k, run in itertools.groupby(np.argmax(log_probs, axis=1).tolist()):
        end = start + len(list(run))
        if k != 0:
            found.append((k, start, end))
        start = end
    return found


def timed(spans: Sequence[tuple[str, Any, Any]], frame: float) -> list[Timed]:
    """(word, start, end) in seconds from (symbol, start, end) in frames of `frame` seconds. A space
    or SentencePiece's mark U+2581 separates words."""
    found: list[Timed] = []
    begins = True
    for symbol, start, end in spans:
        text = symbol.replace(MARK, " ")
        begins |= text.startswith(" ")
        if text.strip():
            before, since, _ = ("", start * frame, 0.0) if begins else found.pop()
            found.append((before + text.strip(), since, end * frame))
            begins = False
        begins |= text.endswith(" ")
    return found
