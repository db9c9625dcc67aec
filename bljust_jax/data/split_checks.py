"""Checks of the splits to score: texts that the labels can spell, and no overlap with training."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import Splits
from bljust_jax.data.streams import UNLABELLED, stream_of
from bljust_jax.data.utterances import Utterance, Utterances

SHOWN = 3  # examples in a message
WIDTH = 60  # characters of each


def check_spellable(splits: Splits, least: float) -> None:
    """UserError, with examples, if fewer than a share `least` of the texts of a split to score have
    a label for every character, as in another language or script than that of training."""
    for split in _scored(splits):
        tokenizer = splits.tokenizer_of(split)
        texts = [text for text in splits.references(split) if text]
        missed = [text for text in texts if not tokenizer.covers(text)]
        if len(texts) - len(missed) < least * len(texts):
            unknown = "".join(list(tokenizer.uncovered(missed))[:20])
            raise UserError(
                f"{split}: only {len(texts) - len(missed)} of {len(texts)} texts can be spelt with"
                f" the labels of training, which lack {unknown!r}; first {_shown(missed)}: name a"
                " split in the language and spelling of data.train, change config.data.text, or"
                f" lower config.data.min_spellable={least:g}"
            )


def describe(splits: Splits) -> list[str]:
    """Log lines on each split to score: texts that cannot be spelt, and audio and speakers that
    occur in its training data too."""
    lines = []
    for split in _scored(splits):
        covers = splits.tokenizer_of(split).covers
        missed = [text for text in splits.references(split) if text and not covers(text)]
        if missed:
            lines.append(f"{split}: texts that cannot be spelt: {_shown(missed)}")
        own = splits.utterances(split)
        known = splits.utterances(stream_of(split, splits.streams))
        audio = _shared_audio({_audio(u) for u in own}, known)
        repeated = [u.id for u in own if _audio(u) in audio]
        if repeated:
            size = f"{len(repeated)} of {len(own)}"
            what = f"{size} utterances are training audio, first {repeated[0]}"
            lines.append(f"{split}: {what}: its scores are not those of unseen speech")
        speakers = _speakers(known)
        same = [u for u in own if u.speaker in speakers and u.speaker != u.id]
        if len(same) > len(repeated):
            what = f"{len(same)} of {len(own)} utterances are of speakers of the training data"
            lines.append(f"{split}: {what}, first {same[0].speaker}: new speakers score worse")
    return lines


def _scored(splits: Splits) -> Iterator[str]:
    """The splits that are not training data and have utterances."""
    for split in splits.names:
        if split != UNLABELLED and split not in splits.streams and splits.utterances(split):
            yield split


def _audio(u: Utterance) -> tuple[str, float]:
    return u.path, u.offset


def _shared_audio(wanted: set[tuple[str, float]], known: Utterances) -> set[tuple[str, float]]:
    """The audio that known utterances have, too."""
    folders = {os.path.dirname(path) for path, _ in wanted}
    column = known.column("folder")
    there = [folder in folders for folder in column.names] + ["" in folders]
    near = known.select(np.array(there, bool)[column.codes])
    return wanted.intersection(zip(near.paths(), near.column("offset").tolist(), strict=True))


def _speakers(utterances: Utterances) -> set[str]:
    """Names of speakers; an utterance without one is named after itself."""
    found = utterances.column("speaker")
    used = np.unique(found.codes)
    return set(found.names.take(used[used >= 0]))


def _shown(texts: Sequence[str]) -> str:
    cut = (text if len(text) <= WIDTH else f"{text[:WIDTH]}..." for text in texts[:SHOWN])
    return ", ".join(map(repr, cut))
