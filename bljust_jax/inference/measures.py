"""WER, CER and MER by jiwer, BLEU and chrF by sacreBLEU, of a corpus of hypotheses and references.

Errors are summed over the corpus and divided by its number of words (characters); sentence scores
are never averaged. BLEU (Papineni et al., 2002) and chrF (Popović, 2015) are sacreBLEU's corpus
scores (Post, 2018), from 0 to 100, equal to those of its command line.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from bljust_jax.bilevel.types import Task
from bljust_jax.common.errors import UserError
from bljust_jax.data.scripts import mixed_tokens

Scores = dict[str, float]
MAX_ERROR = 0.9  # error rates above it count as equal, see `errors`

# sacreBLEU's tokenizer by target language, for scripts without spaces
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}


def is_translation(task: Task) -> bool:
    """Whether a task is a translation, with either head: st/SRC-TGT."""
    return task.name.startswith("st/")


def check(task: Task) -> None:
    """Raises UserError if `task.measure`, which chooses the best weights, does not fit the task."""
    known = ("bleu",) if is_translation(task) else ("wer", "cer", "mer")
    if task.measure not in known:
        kind = "a translation" if is_translation(task) else "recognition"
        field = f"config.data.streams.{task.stream}.measure={task.measure!r}"
        raise UserError(f"{field}: {kind} is measured by {' or '.join(known)}")


def of(task: Task) -> Callable[[list[str], list[str]], Scores]:
    """(references, hypotheses) -> scores: `recognition` or `translation`."""
    if not is_translation(task):
        return recognition
    return functools.partial(translation, tokenize=tokenizer_for(task.stream))


def recognition(references: list[str], hypotheses: list[str]) -> Scores:
    """WER and CER over the corpus, and MER where texts have letters of scripts without spaces
    between words: each of these is a word then. Utterances without a reference text are counted,
    not scored."""
    import jiwer

    refs, hyps = _with_reference(references, hypotheses)
    words, chars = jiwer.process_words(refs, hyps), jiwer.process_characters(refs, hyps)
    tokens = [list(map(mixed_tokens, texts)) for texts in (refs, hyps)]
    mixed = {} if tokens[0] == refs else {"mer": jiwer.process_words(*tokens).wer}
    return {
        **mixed,
        "wer": words.wer,
        "cer": chars.cer,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "words": sum(len(r.split()) for r in refs),
        "utterances": len(refs),
        "without_reference": len(references) - len(refs),
    }


def translation(references: list[str], hypotheses: list[str], tokenize: str = "13a") -> Scores:
    """BLEU and chrF over the corpus, 0 to 100, case kept; `empty`: number of empty hypotheses.

    tokenize: sacreBLEU's "13a", "zh", "char". Utterances without a reference text are counted, not
    scored.
    """
    from sacrebleu.metrics import BLEU, CHRF

    refs, hyps = _with_reference(references, hypotheses)
    return {
        "bleu": BLEU(tokenize=tokenize, force=True).corpus_score(hyps, [refs]).score,
        "chrf": CHRF().corpus_score(hyps, [refs]).score,
        "empty": sum(not h.strip() for h in hyps),
        "utterances": len(refs),
        "without_reference": len(references) - len(refs),
    }


def signatures(task: Task) -> dict[str, str]:
    """sacreBLEU's signatures {"bleu", "chrf"}, to reproduce scores; {} for recognition."""
    if not is_translation(task):
        return {}
    from sacrebleu.metrics import BLEU, CHRF

    found = {"bleu": BLEU(tokenize=tokenizer_for(task.stream)), "chrf": CHRF()}
    for metric in found.values():
        metric.corpus_score(["a"], [["a"]])  # a signature counts the references seen
    return {name: str(metric.get_signature()) for name, metric in found.items()}


def tokenizer_for(stream: str) -> str:
    """sacreBLEU's tokenizer of a stream's target language: "zh" for st/en-zh and st/en-zh-CN."""
    found = re.search(r"-([a-z]+)(-[A-Z]\w*)?$", stream)
    return TOKENIZERS.get(found[1], "13a") if found else "13a"


def errors(task: Task, scores: Mapping[str, float]) -> tuple[float, float]:
    """(error, finer error) of one task, 0 to 1: by its own measure, and by characters. Errors above
    90 % count as 90 %: otherwise empty hypotheses would beat an early model that inserts words."""
    rates = {name: scores[name] for name in ("wer", "cer", "mer") if name in scores}
    rates |= {name: 1 - scores[name] / 100 for name in ("bleu", "chrf") if name in scores}
    rates.setdefault("mer", rates.get("wer", 0.0))  # alike without such letters
    return min(rates[task.measure], MAX_ERROR), rates["cer" if "cer" in rates else "chrf"]


def line(scores: Mapping[str, Any]) -> str:
    """WER 9.1% (S 5 D 2 I 1 of 88 words), CER 3.0%; or BLEU 31.20, chrF 52.10 of 88 texts."""
    s = scores
    if "bleu" in s:
        return f"{rates(s)} of {s['utterances']} texts"
    counts = f"S {s['substitutions']} D {s['deletions']} I {s['insertions']} of {s['words']} words"
    mixed = f", MER {s['mer']:.1%}" if s.get("mer", s["cer"]) != s["cer"] else ""
    return f"WER {s['wer']:.1%} ({counts}), CER {s['cer']:.1%}{mixed}"


def rates(scores: Mapping[str, float]) -> str:
    """WER 9.1%, CER 3.0%, MER 4.0%, BLEU 31.20, chrF 52.10, as far as present."""
    shown = {"wer": "WER {:.1%}", "cer": "CER {:.1%}", "mer": "MER {:.1%}"}
    shown |= {"bleu": "BLEU {:.2f}", "chrf": "chrF {:.2f}"}
    return ", ".join(text.format(scores[name]) for name, text in shown.items() if name in scores)


def _with_reference(references: list[str], hypotheses: list[str]) -> tuple[list[str], list[str]]:
    kept = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r]
    if not kept:
        raise ValueError("no reference text to score against")
    refs, hyps = (list(column) for column in zip(*kept, strict=True))
    return refs, hyps
