"""The sources of ../shared/cases, `{}` for that folder, and what is to be read of each."""

from typing import NamedTuple


class Source(NamedTuple):
    """A source of a case: its texts and unusable recordings, and words of the line that reports
    them."""

    uri: str
    texts: int
    bad: int = 0
    fault: str = ""

    def __str__(self) -> str:
        return self.uri.replace("{}/", "").replace("/", "-")


SOURCES = [
    Source("ami:{}/ami_truncated_wav/AMI/ihm/train", 6, 4, "Headset-0.wav ends early"),
    Source("{}/flac_unknown_length/train.jsonl", 2),
    Source("{}/gsm_not_seekable/train.jsonl", 3),
    Source("{}/invisible_characters/train.jsonl", 4),
    Source("{}/locale_not_utf8/train.jsonl", 8),
    Source("librispeech:{}/macos_dot_underscore/LS/dev", 3),
    Source("tedlium:{}/macos_dot_underscore/TED/train", 1),
    Source("aishell:{}/macos_dot_underscore/AI/train", 1),
    Source("{}/mp3_no_xing/train.jsonl", 1),
    Source("{}/not_an_mp3/train.jsonl", 1, 1, "html.mp3: does not decode as MP3"),
    Source("{}/paths/c++/train.jsonl", 1),
    Source("{}/paths/nfc.jsonl", 1),
    Source("{}/paths/c++/train.jsonl+{}/paths/nfc.jsonl", 2),
    Source("{}/prepare_drops_translation/train.jsonl", 2),
    Source("{}/raw_name/train.jsonl", 2, 1, "speech.raw: Format not recognised"),
    Source("{}/raw_name/nodur.jsonl", 2, 1, "speech.raw: Format not recognised"),
    Source("{}/truncated_wav/train.jsonl", 4, 4, "trunc.wav ends early"),
    # of its texts, not of its recordings
    Source("covost:{}/tsv_tab_newline/CV/nl_en/train", 0, 4, "validated.tsv:2: has 9 fields"),
]
