"""Scores of whole sentences by an n-gram model."""


def sentence_score(lm, words):
    """ln p of a sentence, its end included."""
    state, total = lm.start(), 0.0
    for word in words:
        score, state = lm.score(state, word)
        total += score
    return total + lm.end(state)
