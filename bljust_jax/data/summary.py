"""Summary of the data at the start of a run: sizes, skipped utterances, buckets, label coverage."""

from collections import Counter
from collections.abc import Mapping

from bljust_jax.data.batch_plan import Plan
from bljust_jax.data.sources import hours
from bljust_jax.data.splits import Splits
from bljust_jax.data.streams import LABELLED, UNLABELLED, stream_of
from bljust_jax.data.tokenizer import coverage


def sizes(splits: Splits) -> list[str]:
    """Utterances, hours and speakers of each split, and the utterances skipped."""
    lines = []
    for split in splits.names:
        utterances = splits.utterances(split)
        if not utterances:
            continue
        size = f"{len(utterances)} utterances, {hours(utterances):.2f} h"
        lines.append(f"{split}: {size}, {len({u.speaker for u in utterances})} speakers")
        bad = splits.quarantined.count(split)
        known = Counter({"quarantined, their audio cannot be read": bad} if bad else {})
        for reason, n in (splits.skipped.get(split, Counter()) + known).items():
            lines.append(f"{split}: {n} utterances skipped: {reason}")
    return lines


def plans(plans: Mapping[str, Plan]) -> list[str]:
    """Batches of each stream, utterances that fit no bucket, and utterances per language."""
    lines = []
    for stream, plan in plans.items():
        for reason, n in Counter(reason for _, reason in plan.excluded).items():
            lines.append(f"{stream}: {n} utterances skipped: {reason}")
        for b, batches in zip(plan.buckets, plan.counts, strict=True):
            shape = f"{b.batch_size} x {b.seconds:g} s, at most {b.max_labels} labels"
            lines.append(f"{stream}: {batches} batches per epoch of {shape}")
        for name, (utterances, wanted) in plan.languages.items():
            own = f"language {name!r}, which has {len(utterances)}"
            lines.append(f"{stream}: an epoch has {wanted} utterances of {own}")
    return lines


def texts(splits: Splits) -> list[str]:
    """Vocabulary size of each stream, and how labels cover the references of each split."""
    lines = []
    for stream, tokenizer in splits.tokenizers.items():
        of = "" if stream == LABELLED else f"{stream}: "
        lines.append(f"{of}tokenizer: {tokenizer.vocab_size - 1} {tokenizer.unit}s and the blank")
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
