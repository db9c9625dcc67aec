"""Summary of the data at the start of a run: sizes, skipped utterances, buckets, label coverage."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bljust_jax.common.durations import in_hours
from bljust_jax.data import normalise
from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.filters import PIECE
from bljust_jax.data.scripts import alphabet
from bljust_jax.data.splits import Splits
from bljust_jax.data.streams import LABELLED, UNLABELLED, stream_of
from bljust_jax.data.tokenizer import coverage
from bljust_jax.data.utterances import Utterance, Utterances, hours

MARK = re.compile(r"<\w+>|\[\w+\]")  # what transcribers write for a noise or an unknown word
SHOWN = 5  # labels that a line names


def sizes(splits: Splits) -> list[str]:
    """Utterances, hours and speakers of each split, and the utterances skipped."""
    lines = []
    for split in splits.names:
        utterances = splits.utterances(split)
        if not utterances:
            continue
        size = f"{len(utterances)} utterances, {in_hours(3600 * hours(utterances))}"
        lines.append(f"{split}: {size}, {speakers(utterances)}")
        bad = splits.quarantined.count(split)
        known = Counter({"quarantined, their audio cannot be read": bad} if bad else {})
        for reason, n in (splits.skipped.get(split, Counter()) + known).items():
            lines.append(f"{split}: {n} utterances skipped: {reason}")
    return lines


def speakers(utterances: Sequence[Utterance]) -> str:
    """Number of speakers; sources that name none give each utterance its id as speaker."""
    found = Utterances.of(utterances)
    if not found.named_speakers.any():
        return "speakers not named"
    return f"{found.speakers.ranks().max() + 1} speakers"


def unlabelled_parts(parts: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """Hours of the unlabelled stream from each field that it reads, if there are several; number of
    utterances that are cut."""
    last = f"{PIECE}0"
    cut = 0
    for found in parts.values():
        for ids in Utterances.of(found).ids.chunks():
            if last in "\n".join(ids):
                cut += sum(identity.endswith(last) for identity in ids)
    lines = [f"unlabelled: {cut} utterances longer than data.max_seconds, in pieces"] if cut else []
    if len(parts) < 2:
        return lines
    listed = ", ".join(
        f"{in_hours(3600 * hours(found))} of config.{field}" for field, found in parts.items()
    )
    return [f"unlabelled: {listed}", *lines]


def infeasible(
    splits: Splits,
    labels: Mapping[str, np.ndarray],
    frames: Callable[[int], int],
    sample_rate: int,
) -> list[str]:
    """One line per labelled stream with utterances that CTC cannot align.

    They have fewer frames than labels and repeated labels, T < U + repeats, and give no loss.
    labels: {stream: [2, N] numbers of labels and of repeated ones}; frames: samples -> frames of
    the encoder's output, at the recorded speed.
    """
    lines = []
    for stream, counts in labels.items():
        utterances, spans = splits.utterances(stream), counts.sum(axis=0)
        samples = np.rint(utterances.durations * sample_rate).astype(np.int64)
        known, places = np.unique(samples, return_inverse=True)
        lengths = np.array([frames(count) for count in known.tolist()], np.int64)[places]
        short = np.flatnonzero(lengths < spans).tolist()
        if short:
            u, t, n = utterances[short[0]], int(lengths[short[0]]), int(spans[short[0]])
            lines.append(
                f"{stream}: {len(short)} of {len(utterances)} utterances have fewer frames than"
                f" CTC needs for their {splits.tokenizers[stream].unit}s and add nothing to it,"
                f" first {u.id} ({u.line or u.path}) with {t} for {n}: look for wrong texts or"
                " durations, or use larger units"
            )
    return lines


def plans(plans: Mapping[str, Plan]) -> list[str]:
    """Batches of each stream, utterances that fit no bucket, and utterances per language."""
    lines = []
    for stream, plan in plans.items():
        for reason, n in Counter(reason for _, reason in plan.excluded).items():
            lines.append(f"{stream}: {n} utterances skipped: {reason}")
        audio, padded = plan.audio
        share = f"{1 - audio / padded:.1%} padding"
        lines.append(f"{stream}: {in_hours(audio)} of audio per epoch in batches with {share}")
        for b, batches in zip(plan.buckets, plan.counts, strict=True):
            shape = f"{b.batch_size} x {b.seconds:g} s, at most {b.max_labels} labels"
            lines.append(f"{stream}: {batches} batches per epoch of {shape}")
        read = [b for b, batches in zip(plan.buckets, plan.counts, strict=True) if batches]
        lines += uneven_batches(stream, read)
        for name, (read, there) in plan.hours_of_sources().items():
            own = f"source {name!r}, which has {in_hours(3600 * there)}"
            lines.append(f"{stream}: an epoch has {in_hours(3600 * read)} of {own}")
        for name, (utterances, wanted) in plan.languages.items():
            own = f"language {name!r}, which has {len(utterances)}"
            lines.append(f"{stream}: an epoch has {wanted} utterances of {own}")
    return lines


UNEVEN = 1.5  # largest batch over smallest, in seconds, above which to note it


def uneven_batches(stream: str, buckets: Sequence[Bucket]) -> list[str]:
    """A line if the padded audio of a stream's batches varies by more than `UNEVEN`."""
    seconds = [bucket.batch_size * bucket.seconds for bucket in buckets]
    if max(seconds) <= UNEVEN * min(seconds):
        return []
    low, high = buckets[seconds.index(min(seconds))], buckets[seconds.index(max(seconds))]
    small, large = (f"{b.batch_size} x {b.seconds:g} s" for b in (low, high))
    return [
        f"{stream}: batches vary by {max(seconds) / min(seconds):.2g} times in seconds of audio,"
        f" {small} to {large}; raise config.data.batch_seconds (unlabelled_batch_seconds), which"
        " holds few rows of the longest, for even ones"
    ]


def texts(splits: Splits) -> list[str]:
    """Vocabulary size of each stream, and how labels cover the references of each split."""
    lines = []
    for stream, tokenizer in splits.tokenizers.items():
        of = "" if stream == LABELLED else f"{stream}: "
        lines.append(f"{of}tokenizer: {tokenizer.vocab_size - 1} {tokenizer.unit}s and the blank")
        training = splits.references(stream) if stream in splits.names else []
        lines += [f"{of}{line}" for line in doubtful_labels(tokenizer.symbols, training)]
    for split in splits.names:
        if split == UNLABELLED or split in splits.streams:
            continue
        references = splits.references(split)
        silent = references.count("")
        if silent:
            field = splits.streams[stream_of(split, splits.streams)].field
            lines.append(f"{split}: {silent} utterances without a {field} cannot be scored")
        covered = coverage(splits.tokenizer_of(split), references)
        lines += [f"{split}: {line}" for line in covered]
    return lines


def doubtful_labels(symbols: Iterable[str], references: Sequence[str]) -> list[str]:
    """Log lines on labels that cannot be seen, on marks such as <unk> or [noise] that are spelt
    with labels, and on letters of another alphabet than that of their word, as a Cyrillic a in a
    Latin word: keyboards and scans confuse them."""
    characters, lines = sorted(set().union(*symbols)), []
    hidden = [_named(c) for c in characters if not normalise.is_visible(c)]
    if hidden:
        cure = "add invisible to data.text.normalise to remove them"
        lines.append(f"labels that cannot be seen: {_listed(hidden)}; {cure}")
    marked = references if {"<", "["} & set(characters) else []
    marks = Counter(m for t in marked for m in MARK.findall(t) if m[0] in characters)
    if marks:
        shown = [f"{mark} x {n}" for mark, n in marks.most_common()]
        cure = "their characters are labels: remove them from the texts, or the utterances"
        lines.append(f"marks in the texts: {_listed(shown)}; {cure}")
    if len({alphabet(c) for c in characters} - {""}) < 2:
        return lines
    found: Counter = Counter()
    examples: dict[str, str] = {}
    for word, n in Counter(word for text in references for word in text.split()).items():
        alphabets = Counter(filter(None, map(alphabet, word)))
        for c in set(word) if len(alphabets) > 1 else ():
            if alphabet(c) not in ("", alphabets.most_common(1)[0][0]):
                found[c] += n
                examples.setdefault(c, word)
    if found:
        shown = [f"{_named(c)} x {n} as in {examples[c]!r}" for c, n in found.most_common()]
        lines.append(f"letters of another alphabet than their word: {_listed(shown)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _named(character: str) -> str:
    """U+0430 CYRILLIC SMALL LETTER A."""
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X} {name}".strip()
