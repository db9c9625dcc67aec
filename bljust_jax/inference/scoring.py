"""Score the hypotheses of a split: WER, CER, BLEU and chrF per task, means over tasks, samples.

The measures are in `measures`.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.bilevel.types import Task
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text
from bljust_jax.data.splits import Splits
from bljust_jax.inference import measures
from bljust_jax.inference.decode_split import decode_split, row_text

MEANS = ("wer", "cer", "mer", "bleu", "chrf")  # averaged over tasks, and scored per part of a split
NOT_LEARNED = (
    "  nothing is recognised yet: usual early in training; later, look for a learning rate that is "
    "too high or too low, transcripts that do not belong to the audio, or too few steps; the "
    "variant `overfit` of this config should reach WER 0 first"
)


class Result(NamedTuple):
    """Scores of one task on its part of a split.

    pairs: {"id", "reference", "hypothesis"} in the order of the split
    notes: lines on parts that could not be scored
    """

    scores: dict[str, float]
    pairs: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


class Scored(NamedTuple):
    """Results of a split by task name, for the tasks that have utterances in it, in order."""

    split: str
    tasks: tuple[Task, ...]
    results: dict[str, Result]

    @property
    def scores(self) -> dict[str, float]:
        """Scores of all tasks and, for tasks with names, means: dev/asr/en/wer, dev/wer."""
        found = {k: v for result in self.results.values() for k, v in result.scores.items()}
        return found | {f"{self.split}/{name}": mean for name, mean in self.means.items()}

    @property
    def rates(self) -> dict[str, float]:
        """Those of `scores` that are rates and losses, not counts."""
        return {k: v for k, v in self.scores.items() if k.rpartition("/")[2] in (*MEANS, "loss")}

    @property
    def means(self) -> dict[str, float]:
        """{measure: mean over the tasks with that measure}; {} for a task without a name."""
        own = [self._of(task) for task in self.tasks if task.name]
        found = {name: [s[name] for s in own if name in s] for name in MEANS}
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    @property
    def rank(self) -> list[float]:
        """[error, character error], means over tasks of `measures.errors`: the best weights have
        the least in lexicographic order."""
        errors = [measures.errors(task, self._of(task)) for task in self.tasks]
        return [sum(column) / len(errors) for column in zip(*errors, strict=True)]

    def describe(self, samples: int) -> list[str]:
        """Lines for the log: scores and about `samples` pairs of each task, then the means."""
        if not self.tasks:
            return []
        names = {task.name: task.split(self.split) for task in self.tasks}
        width = max(map(len, names.values())) + 1 if self.means else 0
        few = -(-samples // len(names))
        lines: list[str] = []
        for name, result in self.results.items():
            own = describe(names[name], result, few, width)
            lines += [line for line in own if line != NOT_LEARNED or line not in lines]
        if self.means:
            lines.append(f"{self.split + ':':<{width}} {measures.rates(self.means)}, means")
        return lines

    def _of(self, task: Task) -> dict[str, float]:
        return own_scores(task.split(self.split), self.results[task.name].scores)


def signatures(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """{task name: sacreBLEU's signatures} of the translation tasks."""
    found = {task.name: measures.signatures(task) for task in tasks}
    return {name: own for name, own in found.items() if own}


def own_scores(split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of one split, without its name in the keys."""
    return {k.removeprefix(f"{split}/"): v for k, v in scores.items()}


# Scores


def score_tasks(
    split: str, tasks: Sequence[Task], splits: Splits, decode: Callable[[Task, dict], Any]
) -> Scored:
    """Greedy decoding and scores of a split; tasks without utterances in it are skipped.

    decode: (task, batch) -> rows of `decode_split.greedy_decoder`. The mean of a loss of a task is
    SPLIT/LOSS/loss.
    """
    there = tuple(task for task in tasks if splits.utterances(task.split(split)))
    results = {}
    for task in there:
        own = functools.partial(decode, task)
        rows = dict(decode_split(task.split(split), splits, own, labelled=bool(task.losses)))
        paths = rows if task.translate else {name: row["path"] for name, row in rows.items()}
        result = score_greedy(task, split, splits, paths)
        means = {f"{split}/{x}/loss": mean(rows.values(), x) for x in task.losses}
        results[task.name] = result._replace(scores=result.scores | means)
    return Scored(split, there, results)


def mean(rows: Iterable[Mapping[str, Any]], loss: str) -> float:
    """Mean of a loss over the rows of `decode_split.greedy_decoder`; 0 without any weight."""
    nats, weight = np.sum([np.float64(row[loss]) for row in rows], axis=0)
    return float(nats / max(weight, 1.0))


def score_greedy(task: Task, split: str, splits: Splits, rows: Mapping[str, np.ndarray]) -> Result:
    """Scores of best paths, or of ids of translations, by utterance id; for recognition with the
    share of blank frames, "blank_share"."""
    part = task.split(split)
    tokenizer = splits.tokenizer_of(part)
    texts = {name: row_text(task, tokenizer, row) for name, row in rows.items()}
    result = score_split(task, split, splits, texts)
    if task.translate:
        return result
    blanks = sum(int((path == 0).sum()) for path in rows.values())
    frames = sum(int((path >= 0).sum()) for path in rows.values())
    return result._replace(scores=result.scores | {f"{part}/blank_share": blanks / max(frames, 1)})


def score_split(task: Task, split: str, splits: Splits, texts: Mapping[str, str]) -> Result:
    """Scores of a task from {utterance id: hypothesis}; utterances without a hypothesis (bad audio)
    are skipped.

    A split of several sources is scored as a whole (`test/wer`) and per part (`test/<part>/wer`). A
    part without any utterance that has audio and a text gets a note instead of a score. Raises
    UserError if the whole split has none.
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
            notes.append(f"{split}/{part}: not scored: no utterance with good audio and a text")
    if whole.get("empty"):
        notes.append(f"{split}: {whole['empty']} of the translations are empty")
    return Result(scores, list(pairs.values()), tuple(notes))


# Samples and log lines


def write_samples(folder: pathlib.Path, when: Any, scored: Scored) -> None:
    """Write every pair of reference and hypothesis, one JSON object per line, to
    <split>-<when>.jsonl, or <split>-<task>-<when>.jsonl for tasks with names."""
    for name, result in scored.results.items():
        write_pairs(folder / sample_file(scored.split, name, when), result.pairs)


def sample_file(split: str, task: str, when: Any) -> str:
    """dev-best.jsonl, dev-asr_en-best.jsonl."""
    return "-".join(filter(None, (split, task.replace("/", "_"), str(when)))) + ".jsonl"


def write_pairs(path: pathlib.Path, pairs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))


def describe(split: str, result: Result, samples: int, width: int = 0) -> list[str]:
    """Log lines of one result: scores, notes, the usual causes of a WER of 100 %, a few pairs."""
    s = own_scores(split, result.scores)
    blanks = f", blanks {s['blank_share']:.1%}" if "blank_share" in s else ""
    loss = "".join(f", loss {v:.3f}" for k, v in s.items() if k.rpartition("/")[2] == "loss")
    lines = [f"{split + ':':<{width}} {measures.line(s)}{blanks}{loss}"]
    lines += [f"  {note}" for note in result.notes]
    # WER alone is not enough: Chinese texts have one word per sentence
    if (s.get("wer", 0) >= 1.0 and s["cer"] >= 0.5) or s.get("blank_share", 0) > 0.99:
        lines.append(NOT_LEARNED)
    shown = np.linspace(0, len(result.pairs) - 1, min(samples, len(result.pairs)), dtype=int)
    for n in shown:
        lines.append(f"  ref {result.pairs[n]['reference']}")
        lines.append(f"  hyp {result.pairs[n]['hypothesis']}")
    return lines
