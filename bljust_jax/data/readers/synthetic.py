"""Reader of synthetic speech: `synthetic:NAME/SPLIT`, made by `data/synthetic.py` on first use."""

import dataclasses

from bljust_jax.common.errors import UserError
from bljust_jax.data import synthetic
from bljust_jax.data.readers import manifest
from bljust_jax.data.sources import Utterance


def read(rest: str, root: str) -> list[Utterance]:
    """The utterances of one split of a corpus in the user's cache folder, whatever the `root`.

    The translation of a command is its words in reverse order. Raises UserError for an unknown
    corpus or split, or if eSpeak NG fails.
    """
    name, _, split = rest.partition("/")
    if split not in synthetic.SPLITS:
        raise UserError(
            f"synthetic:{rest}: write synthetic:NAME/SPLIT, NAME one of "
            f"{', '.join(synthetic.CORPORA)}, SPLIT one of {', '.join(synthetic.SPLITS)}"
        )
    found = manifest.read(str(synthetic.make_corpus(name) / f"{split}.jsonl"), "")
    return [dataclasses.replace(u, translation=reverse_words(u.text or "")) for u in found]


def reverse_words(text: str) -> str:
    return " ".join(reversed(text.split()))
