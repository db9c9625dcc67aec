"""`synthetic:NAME/SPLIT`: the spoken commands of `data/synthetic.py`, made on first use."""

from bljust_jax.data import synthetic
from bljust_jax.data.readers import manifest
from bljust_jax.data.sources import Utterance
from bljust_jax.errors import UserError


def read(rest: str, root: str) -> list[Utterance]:
    """The utterances of one split.

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
    return manifest.read(str(synthetic.make_corpus(name) / f"{split}.jsonl"), "")
