"""Decode a split and score it, task by task: WER and CER of what is recognised, BLEU and chrF of
what is translated.

The figures are in `measures`; a run is read back by `trained`; as a command, see `__main__`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bljust_jax.bilevel.types import Task, Weights
from bljust_jax.common.errors import UserError
from bljust_jax.data.splits import Splits
from bljust_jax.data.tokenizer import Tokenizer
from bljust_jax.decoding import greedy
from bljust_jax.inference import measures

MEANS = ("wer", "cer", "bleu", "chrf")  # that several tasks are told by
NOTHING = (
    "  nothing is recognised yet: usual early in training; later, look for a learning rate that is "
    "too high or too low, transcripts that do not belong to the audio, or too few steps; the "
    "variant `overfit` of this config should reach WER 0 first"
)


class Result(NamedTuple):
    """Scores of one task on its part of a split, and what was recognised or translated."""

    scores: dict[str, float]
    pairs: list[dict[str, Any]]  # id, reference, hypothesis, in the order of the split
    notes: tuple[str, ...] = ()  # lines on what could not be scored


class Scored(NamedTuple):
    """A split scored by every task that has a part of it: {task name: its result}, in order."""

    split: str
    tasks: tuple[Task, ...]
    results: dict[str, Result]

    @property
    def scores(self) -> dict[str, float]:
        """Those of the tasks and, of tasks with names, their means: dev/asr/en/wer, dev/wer."""
        found = {k: v for result in self.results.values() for k, v in result.scores.items()}
        return found | {f"{self.split}/{name}": mean for name, mean in self.means.items()}

    @property
    def means(self) -> dict[str, float]:
        """{measure: mean over the tasks that have it}; {} for a task without a name."""
        own = [self._of(task) for task in self.tasks if task.name]
        found = {name: [s[name] for s in own if name in s] for name in MEANS}
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    @property
    def rank(self) -> list[float]:
        """What the best weights have least of: the mean over tasks of the error of their own
        measure, then of their errors of characters (`measures.errors`)."""
        errors = [measures.errors(task, self._of(task)) for task in self.tasks]
        return [sum(column) / len(errors) for column in zip(*errors, strict=True)]

    def describe(self, samples: int) -> list[str]:
        """Lines for a person: those of each task, then the means."""
        if not self.tasks:
            return []
        names = {task.name: task.split(self.split) for task in self.tasks}
        width = max(map(len, names.values())) + 1 if self.means else 0
        few = -(-samples // len(names))
        lines: list[str] = []
        for name, result in self.results.items():
            told = describe(names[name], result, few, width)
            lines += [line for line in told if line != NOTHING or line not in lines]
        if self.means:
            lines.append(f"{self.split + ':':<{width}} {measures.rates(self.means)}, means")
        return lines

    def _of(self, task: Task) -> dict[str, float]:
        return own_scores(task.split(self.split), self.results[task.name].scores)


def signatures(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """sacreBLEU's signatures of each translation task, by its name."""
    found = {task.name: measures.signatures(task) for task in tasks}
    return {name: own for name, own in found.items() if own}


def own_scores(split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one split, without its name."""
    return {k.removeprefix(f"{split}/"): v for k, v in scores.items()}


# What a task says of a batch; to be jitted


def greedily(task: Task) -> Callable[[Weights, dict], Any]:
    """(weights, batch) -> int32 [B, T], -1 where nothing is said any more: the best path of a
    recogniser, the ids of a translation."""

    def best_paths(weights, batch):
        return greedy.best_path(*task.predict(weights.params, weights.stats, batch))

    def translations(weights, batch):
        return task.translate(weights.params, weights.stats, batch, 1)

    return translations if task.translate else best_paths


def distributions(task: Task) -> Callable[[Weights, dict], dict[str, Any]]:
    """(weights, batch) -> {"path": best path [B, T], "log_probs": float32 [B, T, K] in nats}."""

    def distributions(weights, batch):
        logits, lengths = task.predict(weights.params, weights.stats, batch)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return {"path": greedy.best_path(logits, lengths), "log_probs": log_probs}

    return distributions


def said(split: str, splits: Splits, say: Callable[[dict], Any]) -> Iterator[tuple[str, Any]]:
    """(id, its row of the array or arrays of `say(batch)`) of every utterance whose audio is
    sound."""
    for batch, utterances in splits.eval_batches(split):
        found = jax.device_get(say(batch))
        for n, utterance in enumerate(utterances):
            yield utterance.id, jax.tree.map(lambda x, n=n: x[n], found)


def spell(task: Task, tokenizer: Tokenizer, row: Int[np.ndarray, "t"]) -> str:
    """The text of one row of what `greedily` gives."""
    return tokenizer.decode(row[row > 0] if task.translate else greedy.collapse(row))


# Scores


def run(
    split: str, tasks: Sequence[Task], splits: Splits, say: Callable[[Task, dict], Any]
) -> Scored:
    """Greedy decoding of a whole split: `say(task, batch)` gives what `greedily` does with some
    weights. A task whose part of the split is empty is left out."""
    there = tuple(task for task in tasks if splits.utterances(task.split(split)))
    results = {}
    for task in there:
        rows = dict(said(task.split(split), splits, lambda batch, task=task: say(task, batch)))
        results[task.name] = greedy_result(task, split, splits, rows)
    return Scored(split, there, results)


def greedy_result(task: Task, split: str, splits: Splits, rows: Mapping[str, np.ndarray]) -> Result:
    """Rows of what `greedily` gives by utterance id, scored; for recognition with the share of
    blank frames."""
    part = task.split(split)
    tokenizer = splits.tokenizer_of(part)
    texts = {name: spell(task, tokenizer, row) for name, row in rows.items()}
    result = score_split(task, split, splits, texts)
    if task.translate:
        return result
    blanks = sum(int((path == 0).sum()) for path in rows.values())
    frames = sum(int((path >= 0).sum()) for path in rows.values())
    return result._replace(scores=result.scores | {f"{part}/blank_share": blanks / max(frames, 1)})


def score_split(task: Task, split: str, splits: Splits, texts: Mapping[str, str]) -> Result:
    """Hypotheses of a task by utterance id, scored; utterances without one (bad audio) are left
    out.

    A split of several sources is scored as a whole (`test/wer`) and by part (`test/<part>/wer`). A
    part of which no utterance with a text is left has no score, and a note says so; UserError where
    that is so of the whole.
    """
    split = task.split(split)
    utterances, references = splits.utterances(split), splits.references(split)
    pairs = {
        u.id: {"id": u.id, "reference": reference, "hypothesis": texts[u.id]}
        for u, reference in zip(utterances, references, strict=True)
        if u.id in texts
    }
    if not any(pair["reference"] for pair in pairs.values()):
        raise UserError(
            f"{split}: all {len(utterances)} utterances have bad audio or no text, so there is "
            "nothing to score: repair them, or name another source"
        )
    measure = measures.of(task)

    def scored(own: list[dict[str, Any]]) -> dict[str, float]:
        return measure([p["reference"] for p in own], [p["hypothesis"] for p in own])

    whole, notes = scored(list(pairs.values())), []
    scores = {f"{split}/{k}": v for k, v in whole.items()}
    for part, members in splits.parts(split).items():
        ids = [utterances[i].id for i in members]
        own = [pairs[name] for name in ids if name in pairs]
        if any(pair["reference"] for pair in own):
            found = scored(own)
            scores |= {f"{split}/{part}/{k}": found[k] for k in MEANS if k in found}
        else:
            notes.append(f"{split}/{part}: not scored, as no audio with a text is left of it")
    if whole.get("empty"):
        notes.append(f"{split}: {whole['empty']} of the translations are empty")
    return Result(scores, list(pairs.values()), tuple(notes))


# For people


def write_samples(folder: pathlib.Path, when: Any, scored: Scored) -> None:
    """Every hypothesis beside its reference, one JSON object a line: <split>-<when>.jsonl, or
    <split>-<task>-<when>.jsonl for tasks with names."""
    for name, result in scored.results.items():
        write_pairs(folder / sample_file(scored.split, name, when), result.pairs)


def sample_file(split: str, task: str, when: Any) -> str:
    """dev-best.jsonl, dev-asr_en-best.jsonl."""
    return "-".join(filter(None, (split, task.replace("/", "_"), str(when)))) + ".jsonl"


def write_pairs(path: pathlib.Path, pairs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))


def describe(split: str, result: Result, samples: int, width: int = 0) -> list[str]:
    """Lines on one result: the scores, the usual causes when nothing is recognised, a few pairs."""
    s = own_scores(split, result.scores)
    blanks = f", blanks {s['blank_share']:.1%}" if "blank_share" in s else ""
    lines = [f"{split + ':':<{width}} {measures.line(s)}{blanks}"]
    lines += [f"  {note}" for note in result.notes]
    # Chinese has one word a sentence, so that WER alone says little
    if (s.get("wer", 0) >= 1.0 and s["cer"] >= 0.5) or s.get("blank_share", 0) > 0.99:
        lines.append(NOTHING)
    shown = np.linspace(0, len(result.pairs) - 1, min(samples, len(result.pairs)), dtype=int)
    for n in shown:
        lines.append(f"  ref {result.pairs[n]['reference']}")
        lines.append(f"  hyp {result.pairs[n]['hypothesis']}")
    return lines
