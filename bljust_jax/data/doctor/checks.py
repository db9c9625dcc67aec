"""Table of the checks of the data doctor: name, severity, cure, and the function that checks."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bljust_jax.data.doctor import audio_checks, overlap_checks, text_checks
from bljust_jax.data.doctor.survey import Item, Survey

ERROR, WARNING = "error", "warning"


class Check(NamedTuple):
    """find: the items with the fault, each with a detail in words; cure: what to do about it."""

    name: str
    severity: str
    what: str
    cure: str
    find: Callable[[Survey], Iterable[tuple[Item, str]]]


class Finding(NamedTuple):
    """A check that found faults, and the items that have it."""

    check: Check
    found: list[tuple[Item, str]]


NORMALISE = "set config.data.text.normalise as proposed below, or rewrite the texts"
CHECKS = (
    Check(
        "undecodable",
        ERROR,
        "audio that cannot be decoded",
        "replace or remove the files; training skips them",
        audio_checks.undecodable,
    ),
    Check("empty", ERROR, "no samples", "remove the entries", audio_checks.empty),
    Check(
        "not finite",
        ERROR,
        "samples that are NaN or infinite",
        "write the files anew from their source, as 16-bit PCM",
        audio_checks.not_finite,
    ),
    Check(
        "header length",
        ERROR,
        "a header that declares another length than the file has",
        "copy the audio again, or rewrite the header: sox in.wav out.wav",
        audio_checks.header_length,
    ),
    Check(
        "duration",
        ERROR,
        "another duration than the manifest states",
        "correct duration, or leave it out to have the file's own",
        audio_checks.duration,
    ),
    Check(
        "silent",
        ERROR,
        "silence",
        "remove the entries, or look for the channel or file with the speech",
        audio_checks.silent,
    ),
    Check(
        "clipped",
        WARNING,
        "clipped peaks",
        "record or export again at a lower gain; keep a few",
        audio_checks.clipped,
    ),
    Check(
        "offset",
        WARNING,
        "a DC offset",
        "remove it with a high-pass filter: sox in.wav out.wav highpass 20",
        audio_checks.offset,
    ),
    Check(
        "sample rate",
        WARNING,
        "a sample rate below that of training, or unlike the other files",
        "take the original recordings; speech sampled at 8 kHz lacks everything above 4 kHz",
        audio_checks.sample_rate,
    ),
    Check(
        "channels",
        WARNING,
        "channels that differ; training averages them",
        "extract the channel with the speech: sox in.wav out.wav remix 1",
        audio_checks.channels,
    ),
    Check(
        "speaking rate",
        WARNING,
        "characters per second out of range: the text may be of another recording",
        "listen to them and correct the texts or the segments",
        text_checks.speaking_rate,
    ),
    Check(
        "infeasible",
        WARNING,
        "more labels than CTC can place in the frames; they add nothing to its loss",
        "check texts and durations; larger units (config.data.text.units=bpe) need fewer labels",
        text_checks.infeasible,
    ),
    Check(
        "vocabulary",
        ERROR,
        "characters without a label; training skips such texts",
        "rewrite the texts, or add texts with these characters to the training data",
        text_checks.outside_vocabulary,
    ),
    Check(
        "scripts",
        WARNING,
        "a script that few other texts of the language have",
        "correct texts or lang, or remove the entries",
        text_checks.mixed_scripts,
    ),
    Check(
        "look-alikes",
        ERROR,
        "letters of another alphabet within a word, such as a Cyrillic a in a Latin word",
        "replace them by the letters that they look like",
        text_checks.look_alikes,
    ),
    Check("case", WARNING, "another case than most texts", NORMALISE, text_checks.mixed_case),
    Check(
        "punctuation",
        WARNING,
        "punctuation in some texts only",
        NORMALISE,
        text_checks.mixed_punctuation,
    ),
    Check(
        "digits",
        WARNING,
        "numbers in digits, whose pronunciation the text does not spell",
        "spell them as they are spoken",
        text_checks.digits,
    ),
    Check(
        "invisible",
        WARNING,
        "characters that cannot be seen, such as a zero-width space",
        NORMALISE,
        text_checks.invisible,
    ),
    Check(
        "marks",
        WARNING,
        "marks such as <unk> or [noise], whose characters would be labels",
        "remove the marks, or the entries",
        text_checks.marks,
    ),
    Check(
        "duplicate id",
        ERROR,
        "an id used before; training refuses it",
        'give each entry its own "id"',
        overlap_checks.duplicate_ids,
    ),
    Check(
        "duplicate audio",
        WARNING,
        "the same samples as an entry before",
        "remove one of them",
        overlap_checks.duplicate_audio,
    ),
    Check(
        "duplicate text",
        WARNING,
        "a text of four words or more that another entry has",
        "check that it was spoken twice",
        overlap_checks.duplicate_texts,
    ),
    Check(
        "audio overlap",
        ERROR,
        "training audio in dev or test: its score is not that of unseen speech",
        "remove it from one of the splits",
        overlap_checks.audio_overlap,
    ),
    Check(
        "speaker overlap",
        WARNING,
        "speakers of the training data in dev or test: new speakers score worse",
        "split by speaker",
        overlap_checks.speaker_overlap,
    ),
    Check(
        "text overlap",
        WARNING,
        "texts of the training data in dev or test",
        "split by text as well, or remove them from the training data",
        overlap_checks.text_overlap,
    ),
    Check(
        "languages",
        WARNING,
        "languages with less than a tenth of the hours of the largest",
        "set config.data.temperature (unlabelled_temperature) above 1, or add data",
        overlap_checks.unbalanced_languages,
    ),
)


def run(survey: Survey) -> list[Finding]:
    """The checks of `CHECKS` that find a fault, errors before warnings."""
    findings = [Finding(check, list(check.find(survey))) for check in CHECKS]
    found = [finding for finding in findings if finding.found]
    return sorted(found, key=lambda finding: finding.check.severity != ERROR)
