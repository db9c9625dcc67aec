"""Training objectives on an encoder, one file each; self-supervised ones are loaded by file name.

`config.ssl = "cpc"` calls `build(config, encoder)` of `objectives/cpc.py`, which returns an
`EncoderObjective`. One new file with a `build` adds a self-supervised loss. Its fields,
`config.cpc`, are `FIELDS` of the same file, with defaults (`common/config_schema/losses.py`).
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax

from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Extras, Teacher, Tree
from bljust_jax.common import plugins, trees
from bljust_jax.common.config_schema import losses
from bljust_jax.models.encoders import Encoded, Encoder


def head_name(loss: str) -> str:
    """Key in the parameter tree of the head of a loss: "ctc" -> "ctc_head", "asr/en" ->
    "asr_en_head"."""
    return f"{loss.replace('/', '_')}_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderObjective:
    """One loss on an encoder's output: an `Objective` (`bilevel/types.py`) and its head.

    A subclass defines `apply(params, extras, batch, rng) -> ({name: (loss_sum, weight)}, Aux)` and
    `init(rng) -> ({head: parameters}, {name: frozen arrays})`. One that defines
    `apply_encoded(params, extras, data, encoded, rng)`, with the result of `apply`, can share a
    forward pass (`objectives/shared_forward.py`).

    encoder: its parameters are params["encoder"]
    stream: key of the batch that `apply` reads
    name: of the loss; prefix of its metrics
    sample_rate: of the audio, in Hz
    """

    encoder: Encoder
    name: str
    stream: str = "unlabelled"
    sample_rate: int = 16000

    @property
    def losses(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.stream,)

    @property
    def kind(self) -> Any:
        """See `bilevel/types.Objective`."""
        return None

    @property
    def teachers(self) -> dict[str, Teacher]:
        """{name in `extras.frozen`: how the step moves it}."""
        return {}

    @property
    def frame_classes(self) -> tuple[int, str]:
        """(number of classes of the frame labels that `apply` reads, 0 for none; the field)."""
        return 0, ""

    @property
    def head(self) -> str:
        """Key of the head's parameters."""
        return head_name(self.name)

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        """{key of a head: the losses that train it}."""
        return {self.head: frozenset({self.name})}

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """Encoder FLOPs of one training step with these losses active, per row of `seconds` padded
        seconds: forward 1, backward 2."""
        del losses
        return 3 * self.encoder.flops(round(seconds * self.sample_rate))

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of the head in that step, per row: 6 N per output frame (2 per weight, forward 1,
        backward 2) for N weights of the head, biases apart; exact for linear maps."""
        del losses
        return 6 * self.frames_of(seconds) * self.head_weights

    def frames_of(self, seconds: float | int) -> int:
        """Frames of the encoder's output for a row of `seconds`."""
        return self.encoder.frames(round(seconds * self.sample_rate))

    @functools.cached_property
    def head_weights(self) -> int:
        """Number of weights of the head, biases apart; computes no array."""
        heads, _ = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        sizes = trees.map_named(lambda name, x: 0 if name.endswith("bias") else x.size, heads)
        return sum(jax.tree.leaves(sizes))

    def encode_augmented(
        self, params: Tree, extras: Extras, data: Tree, context: str, augment_rng: Any, rng: Any
    ) -> Encoded:
        """The encoder's output on a training batch, augmented with a key per utterance."""
        keys = row_keys(augment_rng, data["ids"])
        options = {"context": context, "train": True, "augment_keys": keys, "rng": rng}
        audio = data["audio"], data["audio_lengths"]
        return self.encoder.encode_audio(params, extras.stats, *audio, **options)


def nameless(objective: EncoderObjective) -> EncoderObjective:
    """A copy without names of loss and stream: the `kind` of an objective that reads nothing of its
    own but its head and its stream."""
    return dataclasses.replace(objective, name="", stream="")


def is_pretrained(config: Any, part: str) -> bool:
    """Whether "encoder", or a head by its key, comes from another run: `config.init_from` is set
    and `config.init_parts` names the part. A run that trains such a part is refused unless the
    other has it (`train/init_from.py`), so the config alone decides."""
    return bool(config.get("init_from")) and bool({"all", part} & set(config.init_parts))


def load(name: str) -> Callable[[Any, Encoder], EncoderObjective]:
    """`build` of `objectives/<name>.py`, which takes the defaults of the file's `FIELDS` for those
    that the config lacks. Raises UserError if there is no such self-supervised loss."""
    build = plugins.load(__name__, name, "build", "config.ssl")
    fields = getattr(sys.modules[build.__module__], "FIELDS", {})
    return lambda config, encoder: build(losses.complete(config, name, fields), encoder)
