"""Decode a split and score it: corpus WER and CER with substitutions, deletions and insertions.

Errors are summed over the corpus and divided by its words (characters); sentence scores are never
averaged.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jiwer
import numpy as np

from bljust_jax.decode import greedy
from bljust_jax.system import Recipe, Weights


class Result(NamedTuple):
    """Scores of one split, and what was recognised."""

    scores: dict[str, float]
    pairs: list[dict[str, str]]  # id, reference, hypothesis, in the order of the split


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
    """{"path": int32 [B, T], "blank_share": (sum, weight)} of a batch; to be jitted."""
    logits, lengths = recipe.predict(weights.params, weights.stats, batch)
    return {
        "path": greedy.best_path(logits, lengths),
        "blank_share": greedy.blank_share(logits, lengths),
    }


def run(split: str, corpus: Any, predict: Callable[[dict], Any]) -> Result:
    """Greedy decoding of a whole split; `predict(batch)` gives `best_paths` with some weights.

    A split of several sources is scored as a whole (`test/wer`) and by part (`test/<part>/wer`).
    """
    found: dict[str, str] = {}
    blanks = np.zeros(2)
    for batch, utterances in corpus.eval_batches(split):
        prediction = jax.device_get(predict(batch))
        blanks += np.asarray([float(x) for x in prediction["blank_share"]])
        for utterance, path in zip(utterances, prediction["path"], strict=False):
            found[utterance.id] = corpus.tokenizer.decode(greedy.collapse(path))
    pairs = [
        {"id": u.id, "reference": reference, "hypothesis": found[u.id]}
        for u, reference in zip(corpus.utterances(split), corpus.references(split), strict=True)
    ]
    scores = {f"{split}/{k}": v for k, v in _score_pairs(pairs).items()}
    scores[f"{split}/blank_share"] = float(blanks[0] / max(blanks[1], 1))
    for part, members in corpus.parts(split).items():
        own = _score_pairs([pairs[i] for i in members])
        scores |= {f"{split}/{part}/{k}": own[k] for k in ("wer", "cer")}
    return Result(scores, pairs)


def _score_pairs(pairs: list[dict[str, str]]) -> dict[str, float]:
    return score([p["reference"] for p in pairs], [p["hypothesis"] for p in pairs])


def write_samples(path: pathlib.Path, pairs: list[dict[str, str]]) -> None:
    """Every hypothesis beside its reference, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))


def describe(split: str, result: Result, samples: int) -> list[str]:
    """Lines for a person: the scores, the usual causes when nothing is recognised, a few pairs."""
    s = {k.removeprefix(f"{split}/"): v for k, v in result.scores.items()}
    lines = [
        f"{split}: WER {s['wer']:.1%} (S {s['substitutions']} D {s['deletions']} "
        f"I {s['insertions']} of {s['words']} words), CER {s['cer']:.1%}, "
        f"blanks {s['blank_share']:.1%}"
    ]
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
