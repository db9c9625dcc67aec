"""`synthetic:NAME/SPLIT`: the spoken commands of `data/synthetic.py`, made on first use."""

import dataclasses

from bljust_jax.common.errors import UserError
from bljust_jax.data import synthetic
from bljust_jax.data.readers import manifest
from bljust_jax.data.sources import Utterance


def read(rest: str, root: str) -> list[Utterance]:
    """The utterances of one split; to translate a command is to say its words in reverse order.

    Args:
      rest: what follows `synthetic:`, for instance `commands/train`.
      root: not used, the corpus lies in the user's cache folder.

    Raises:
      UserError: no such corpus or split, or eSpeak NG fails.
    """
    name, _, split = rest.partition("/")
    if split not in synthetic.SPLITS:
        raise UserError(
            f"synthetic:{rest}: write synthetic:NAME/SPLIT, NAME one of "
            f"{', '.join(synthetic.CORPORA)}, SPLIT one of {', '.join(synthetic.SPLITS)}"
        )
    found = manifest.read(str(synthetic.make_corpus(name) / f"{split}.jsonl"), "")
    return [dataclasses.replace(u, translation=backwards(u.text or "")) for u in found]


def backwards(text: str) -> str:
    return " ".join(reversed(text.split()))
