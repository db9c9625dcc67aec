"""Checks of entries against each other: duplicates, overlap of splits, balance of languages."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

from bljust_jax.data.doctor.survey import TRAIN, Item, Survey

Faults = Iterator[tuple[Item, str]]

WORDS = 4  # of a text from which on a repetition is no coincidence
LETTERS = 10  # of such a text in a script without spaces
UNBALANCED = 0.1  # hours of a language over those of the largest


def duplicate_ids(survey: Survey) -> Faults:
    for split in dict.fromkeys(item.split for item in survey.items):
        own = [item for item in survey.items if item.split == split]
        yield from _repeated(own, lambda item: item.utterance.id)


def duplicate_audio(survey: Survey) -> Faults:
    for split in dict.fromkeys(item.split for item in survey.items):
        own = [item for item in survey.readable if item.split == split and item.audio.fingerprint]
        yield from _repeated(own, lambda item: item.audio.fingerprint)


def duplicate_texts(survey: Survey) -> Faults:
    """Within a split whose texts do not repeat as a rule; the same recording is reported as
    duplicate audio."""
    for split in dict.fromkeys(item.split for item in survey.items):
        if survey.words_repeat(split):
            continue
        first: dict[str, Item] = {}
        for item in survey.items:
            if item.split != split or not _is_long(item.text):
                continue
            before = first.setdefault(item.text, item)
            print_ = item.audio.fingerprint
            if before is not item and not (print_ and print_ == before.audio.fingerprint):
                yield item, f"as {_name(before)}: {item.text!r}"


def _is_long(text: str) -> bool:
    return len(text.split()) >= WORDS or (" " not in text and len(text) >= LETTERS)


def _repeated(items: Sequence[Item], key: Callable[[Item], Hashable]) -> Faults:
    first: dict[Hashable, Item] = {}
    for item in items:
        before = first.setdefault(key(item), item)
        if before is not item:
            yield item, f"as {_name(before)}"


def _name(item: Item) -> str:
    u = item.utterance
    return f"{u.id} ({u.line})" if u.line else u.id


def audio_overlap(survey: Survey) -> Faults:
    known = {item.audio.fingerprint: item for item in survey.train if item.audio.fingerprint}
    for item in survey.held_out:
        if item.audio.fingerprint in known:
            yield item, f"{item.split}: as {_name(known[item.audio.fingerprint])} of {TRAIN}"


def speaker_overlap(survey: Survey) -> Faults:
    """An utterance without a speaker is named after itself."""
    known = {i.utterance.speaker for i in survey.train if i.utterance.speaker != i.utterance.id}
    for item in survey.held_out:
        if item.utterance.speaker in known:
            yield item, f"{item.split}: speaker {item.utterance.speaker}"


def text_overlap(survey: Survey) -> Faults:
    """Of splits whose texts do not repeat as a rule."""
    known = {item.text: item for item in survey.train if _is_long(item.text)}
    for split in dict.fromkeys(item.split for item in survey.held_out):
        if survey.words_repeat(split) or survey.words_repeat(TRAIN):
            continue
        for item in survey.held_out:
            if item.split == split and item.text in known:
                yield item, f"{split}: as {_name(known[item.text])} of {TRAIN}: {item.text!r}"


def unbalanced_languages(survey: Survey) -> Faults:
    """One example per language, of the training data."""
    hours: Counter[str] = Counter()
    for item in survey.train:
        hours[item.utterance.lang] += item.audio.seconds / 3600
    most = max(hours.values(), default=0.0)
    for language, found in hours.items():
        if found < UNBALANCED * most:
            item = next(item for item in survey.train if item.utterance.lang == language)
            yield item, f"{language or 'no language'}: {found:.3g} h, the largest {most:.3g} h"
