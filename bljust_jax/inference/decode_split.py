"""Decode a split of a corpus: best paths, translations and CTC log-probabilities."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bljust_jax.bilevel.types import Task, Weights
from bljust_jax.data.splits import Splits
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.decoding import greedy
from bljust_jax.inference.trained_run import TrainedRun
from bljust_jax.parallel.mesh import put_batch


class CtcOutput(NamedTuple):
    """CTC output of a split by utterance id: best paths int32 [T], -1 at padded frames, and
    log-probabilities float32 [T, K] of the valid frames, in nats."""

    paths: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray]


def greedy_decoder(task: Task) -> Callable[[Weights, dict], Any]:
    """(weights, batch) -> the ids of a translation by greedy search, int32 [B, U], padded with -1;
    of a recognition task {"path": best path, int32 [B, T], padded with -1, LOSS: (nats [B], weight
    [B]) of each of its losses, for which the batch needs labels}. To be jitted."""
    if task.translate:
        return translation_decoder(task, 1)

    def best_paths(weights, batch):  # the name of the program in profiles
        logits, lengths = task.predict(*weights, batch)
        losses = {name: loss(logits, lengths, batch) for name, loss in task.losses.items()}
        return {"path": greedy.best_path(logits, lengths), **losses}

    return best_paths


def translation_decoder(task: Task, beam: int) -> Callable[[Weights, dict], Any]:
    """(weights, batch) -> ids int32 [B, U], -1 after the end of sequence. To be jitted."""
    return lambda weights, batch: task.translate(*weights, batch, beam)


def log_prob_decoder(task: Task) -> Callable[[Weights, dict], dict[str, Any]]:
    """(weights, batch) -> {"path": best path [B, T], "log_probs": float32 [B, T, K] in nats}. To be
    jitted."""

    def log_probs(weights, batch):
        logits, lengths = task.predict(*weights, batch)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return {"path": greedy.best_path(logits, lengths), "log_probs": log_probs}

    return log_probs


def decode_split(
    split: str, splits: Splits, decode: Callable[[dict], Any], *, labelled: bool = False
) -> Iterator[tuple[str, Any]]:
    """(id, its row of the array or arrays of `decode(batch)`) of every utterance with decodable
    audio; `labelled`: of `Splits.eval_batches`."""
    for batch, utterances in splits.eval_batches(split, labelled=labelled):
        found = jax.device_get(decode(batch))
        for n, utterance in enumerate(utterances):
            yield utterance.id, jax.tree.map(lambda x, n=n: x[n], found)


def decode_with_run(
    run: TrainedRun, splits: Splits, split: str, decoder: Callable[[Weights, dict], Any]
) -> Iterator[tuple[str, Any]]:
    """(id, row of `decoder(weights, batch)`) over a split of the run's task."""
    program = jax.jit(decoder)
    part = run.task.split(split)
    return decode_split(part, splits, lambda b: program(run.weights, put_batch(b, run.mesh)))


def compute_ctc_output(run: TrainedRun, splits: Splits, split: str) -> CtcOutput:
    """Best paths and log-probabilities of a split, in host memory: 4 K bytes per frame."""
    output = CtcOutput({}, {})
    for name, row in decode_with_run(run, splits, split, log_prob_decoder(run.task)):
        output.paths[name] = row["path"]
        output.log_probs[name] = row["log_probs"][row["path"] >= 0]
    return output


def row_text(task: Task, tokenizer: Tokenizer, row: Int[np.ndarray, "t"]) -> str:
    """The text of a best path, or of the ids of a translation, of `greedy_decoder`."""
    return tokenizer.decode(row[row > 0] if task.translate else greedy.collapse(row))
