"""Decode a split and score it: corpus WER and CER with substitutions, deletions and insertions.

Errors are summed over the corpus and divided by its words (characters); sentence scores are never
averaged. As a command, see `__main__`; a run is read back by `trained`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jiwer
import numpy as np

from bljust_jax.data.splits import Splits
from bljust_jax.decode import greedy
from bljust_jax.errors import UserError
from bljust_jax.system import Recipe, Weights


class Result(NamedTuple):
    """Scores of one split, and what was recognised."""

    scores: dict[str, float]
    pairs: list[dict[str, Any]]  # id, reference, hypothesis, in the order of the split
    notes: tuple[str, ...] = ()  # lines on what could not be scored


def score(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """WER and CER over the corpus. Utterances without a reference text are counted, not scored."""
    kept = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r]
    if not kept:
        raise ValueError("no reference text to score against")
    refs, hyps = (list(column) for column in zip(*kept, strict=True))
    words, chars = jiwer.process_words(refs, hyps), jiwer.process_characters(refs, hyps)
    return {
        "wer": words.wer,
        "cer": chars.cer,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "words": sum(len(r.split()) for r in refs),
        "utterances": len(refs),
        "without_reference": len(references) - len(refs),
    }


def best_paths(recipe: Recipe, weights: Weights, batch: dict) -> dict[str, Any]:
    """{"path": int32 [B, T]}, -1 at padded frames, of a batch; to be jitted."""
    logits, lengths = recipe.predict(weights.params, weights.stats, batch)
    return {"path": greedy.best_path(logits, lengths)}


def distributions(recipe: Recipe, weights: Weights, batch: dict) -> dict[str, Any]:
    """`best_paths`, and "log_probs": float32 [B, T, K] in nats."""
    logits, lengths = recipe.predict(weights.params, weights.stats, batch)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return {"path": greedy.best_path(logits, lengths), "log_probs": log_probs}


def predictions(
    split: str, splits: Splits, predict: Callable[[dict], dict[str, Any]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(id, its row of each array of `predict(batch)`) of every utterance whose audio is sound."""
    for batch, utterances in splits.eval_batches(split):
        found = jax.device_get(predict(batch))
        for n, utterance in enumerate(utterances):
            yield utterance.id, {name: rows[n] for name, rows in found.items()}


def run(split: str, splits: Splits, predict: Callable[[dict], dict[str, Any]]) -> Result:
    """Greedy decoding of a whole split; `predict(batch)` gives `best_paths` with some weights."""
    found = predictions(split, splits, predict)
    return greedy_result(split, splits, {name: row["path"] for name, row in found})


def greedy_result(split: str, splits: Splits, paths: Mapping[str, np.ndarray]) -> Result:
    """The collapsed best paths [T] by utterance id, scored, and the share of their blank frames."""
    decode = splits.tokenizer.decode
    texts = {name: decode(greedy.collapse(path)) for name, path in paths.items()}
    blanks = sum(int((path == 0).sum()) for path in paths.values())
    frames = sum(int((path >= 0).sum()) for path in paths.values())
    result = score_split(split, splits, texts)
    return result._replace(scores=result.scores | {f"{split}/blank_share": blanks / max(frames, 1)})


def score_split(split: str, splits: Splits, texts: Mapping[str, str]) -> Result:
    """Hypotheses by utterance id, scored; utterances without one (bad audio) are left out.

    A split of several sources is scored as a whole (`test/wer`) and by part (`test/<part>/wer`). A
    part of which no utterance with a text is left has no score, and a note says so; UserError where
    that is so of the whole.
    """
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
    scores = {f"{split}/{k}": v for k, v in _score_pairs(list(pairs.values())).items()}
    notes = []
    for part, members in splits.parts(split).items():
        ids = [utterances[i].id for i in members]
        own = [pairs[name] for name in ids if name in pairs]
        if any(pair["reference"] for pair in own):
            found = _score_pairs(own)
            scores |= {f"{split}/{part}/{k}": found[k] for k in ("wer", "cer")}
        else:
            notes.append(f"{split}/{part}: not scored, as no audio with a text is left of it")
    return Result(scores, list(pairs.values()), tuple(notes))


def _score_pairs(pairs: list[dict[str, Any]]) -> dict[str, float]:
    return score([p["reference"] for p in pairs], [p["hypothesis"] for p in pairs])


def rank(scores: Mapping[str, float]) -> list[float]:
    """What the best weights have least of on dev: WER, then CER. Above 100 % all word error rates
    are alike: else saying nothing at all would beat a beginner's inserted words."""
    return [min(scores["dev/wer"], 1.0), scores["dev/cer"]]


def write_samples(path: pathlib.Path, pairs: list[dict[str, Any]]) -> None:
    """Every hypothesis beside its reference, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))


def describe(split: str, result: Result, samples: int) -> list[str]:
    """Lines for a person: the scores, the usual causes when nothing is recognised, a few pairs."""
    s = {k.removeprefix(f"{split}/"): v for k, v in result.scores.items()}
    lines = [f"{split}: {errors(s)}, blanks {s['blank_share']:.1%}"]
    lines += [f"  {note}" for note in result.notes]
    if s["wer"] >= 1.0 or s["blank_share"] > 0.99:
        lines.append(
            "  nothing is recognised yet: usual early in training; later, look for a learning rate "
            "that is too high or too low, transcripts that do not belong to the audio, or too few "
            "steps; the variant `overfit` of this config should reach WER 0 first"
        )
    shown = np.linspace(0, len(result.pairs) - 1, min(samples, len(result.pairs)), dtype=int)
    for n in shown:
        lines.append(f"  ref {result.pairs[n]['reference']}")
        lines.append(f"  hyp {result.pairs[n]['hypothesis']}")
    return lines


def errors(scores: Mapping[str, float]) -> str:
    """WER 9.1% (S 5 D 2 I 1 of 88 words), CER 3.0%."""
    s = scores
    counts = f"S {s['substitutions']} D {s['deletions']} I {s['insertions']} of {s['words']} words"
    return f"WER {s['wer']:.1%} ({counts}), CER {s['cer']:.1%}"
