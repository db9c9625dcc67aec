"""Rows of `metrics.jsonl` as runs with many objectives and tasks log them."""

from itertools import combinations

ASR, ST = ("asr/ar", "asr/en"), ("st/ar-en", "st/en-ar")
LEVELS = (ASR, ST, ("cpc",))
LAYERS = ("encoder/frontend", "encoder/blocks/0", "encoder/blocks/1")


def moo_rows(groups=(ASR, ST), layers=LAYERS, steps=range(50, 101, 10)):
    """Joint steps: in each level the first weight falls from 1/2, the others share the rest; the
    cosine of pair p in layer n is p/100 + n/10 + step/500, over all layers -0.25."""
    rows = []
    for step in steps:
        row = {"step": step}
        for group in groups:
            row |= {f"train/{name}/loss": 3.0 - step / 100 for name in group}
            row |= {f"moo/norm/{name}": 1.0 for name in group}
            first = 0.5 - step / 1000
            rest = (1 - first) / (len(group) - 1)
            row |= {f"moo/weight/{name}": rest for name in group}
            row[f"moo/weight/{group[0]}"] = first
            for p, (a, b) in enumerate(combinations(group, 2)):
                row[f"moo/cos/{a}|{b}"] = -0.25
                row |= {
                    f"moo/cos/{a}|{b}/{layer}": p / 100 + n / 10 + step / 500
                    for n, layer in enumerate(layers)
                }
        rows.append(row)
    return rows


def score_rows():
    """Two evaluations of four tasks, and the means over tasks; at step 100 WER 50 % and 60 %, BLEU
    30 and 31."""
    rows = []
    for step in (60, 100):
        wer, bleu = 50 / step, 0.3 * step
        row = {"step": step, "compute/encoder_tflop": step / 50, "train/cpc/loss": 1.0}
        for n, name in enumerate(ASR):
            row |= {f"dev/{name}/wer": wer + n / 10, f"dev/{name}/cer": wer / 2}
        row |= {f"dev/{name}/bleu": bleu + n for n, name in enumerate(ST)}
        row |= {f"dev/{name}/chrf": 2 * bleu for name in ST}
        row |= {"dev/wer": wer + 0.05, "dev/cer": wer / 2, "dev/bleu": bleu + 0.5}
        rows.append(row | {"dev/chrf": 2 * bleu})
    return rows
