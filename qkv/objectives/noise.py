"""Ways to spoil text: which tokens are chosen, and what becomes of them. Functions of token ids alone, reproducible from a generator.

Dims: B rows, T tokens.
"""

import numpy as np
import torch


def uniform(rng, shape):
    """Numbers in [0, 1) of a numpy generator, as a tensor."""
    return torch.from_numpy(rng.random(tuple(shape), dtype=np.float32))


def place_scores(ids_BT, salt=0):
    """Scores in [0, 1) that a token gets from itself and its neighbours alone: the same place of a text always scores the same
    (static masking, as BERT's data were made; RoBERTa, 2019, section 4.1)."""
    mixed = torch.full_like(ids_BT, 40503 + salt)
    for shift in range(-3, 4):
        moved = torch.roll(ids_BT, shift, 1)
        mixed = ((mixed ^ (moved + 7919 * (shift + 4))) * 0x5851F42D4C957F2D + 1442695040888963407) ^ (mixed >> 29)
    return ((mixed >> 20) & 0xFFFFFF).float() / 2**24


def lowest(score_BT, allowed_BT, rate):
    """The round(rate T) allowed tokens of each row that score lowest, one at least."""
    score_BT = score_BT.masked_fill(~allowed_BT, 2.0)
    count = max(1, round(rate * score_BT.shape[1]))
    chosen = torch.zeros_like(allowed_BT).scatter_(1, score_BT.topk(count, largest=False)[1], True)
    return chosen & allowed_BT


def words(ids_BT, begins_V):
    """(B, T): the number of the word, from 0 on, that each token is part of."""
    begin = begins_V[ids_BT]
    begin[:, 0] = True
    return begin.cumsum(1) - 1


def lowest_words(score_BT, allowed_BT, word_BT, rate):
    """Whole words, those that score lowest at their first token, until `rate` of the tokens are chosen."""
    begin = word_BT != word_BT.roll(1, 1)
    begin[:, 0] = True
    score_BT = torch.where(allowed_BT, torch.where(begin, score_BT, 3.0), 2.0)
    first = torch.full_like(score_BT, 3.0).scatter_reduce_(1, word_BT, score_BT, "amin")
    mine = first.gather(1, word_BT)  # a word's score is that of its first token
    count = max(1, round(rate * score_BT.shape[1]))
    limit = mine.sort(1)[0][:, count - 1 : count]
    return (mine <= limit) & allowed_BT


def spans(allowed_BT, word_BT, rate, rng, p=0.2, most=10):
    """Runs of whole words whose lengths are geometric (p) up to `most`, until `rate` of the tokens are covered (SpanBERT, 2020,
    section 3.1). Returns (chosen (B, T), number of the span that covers each token or -1 (B, T))."""
    B, T = allowed_BT.shape
    budget = max(1, round(rate * T))
    chances = p * (1 - p) ** np.arange(most)
    chances /= chances.sum()
    mean = chances @ np.arange(1, most + 1)
    N = int(3 * budget / mean) + 4
    start = torch.from_numpy(rng.integers(0, T, (B, N)))
    length = torch.from_numpy(1 + rng.choice(most, (B, N), p=chances))
    first = word_BT.gather(1, start)
    inside = (word_BT[:, None] >= first[..., None]) & (word_BT[:, None] < (first + length)[..., None])  # (B, N, T)
    inside &= allowed_BT[:, None]
    covered = (inside.cumsum(1) > 0).sum(2)  # tokens covered by the first n spans
    before = torch.cat([torch.zeros(B, 1, dtype=covered.dtype), covered[:, :-1]], 1)
    keep = (covered <= budget) | (covered - budget <= budget - before)  # the last one where that comes nearer
    keep[:, 0] = True
    keep = keep.cumprod(1).bool()
    inside &= keep[..., None]
    span = torch.where(inside.any(1), inside.int().argmax(1), -1)
    return span >= 0, span


def runs(noise_T):
    """(start, end) of each run of True."""
    edge = np.flatnonzero(np.diff(np.concatenate([[0], noise_T.astype(np.int8), [0]])))
    return edge.reshape(-1, 2)


def random_spans(length, rate, mean, rng):
    """Noise of `rate` of the tokens in spans of `mean` length on average, none next to another (T5, 2020, section 3.1.4)."""
    noisy = min(max(1, round(length * rate)), length - 1)
    count = max(1, min(round(noisy / mean), length - noisy))

    def parts(total):  # a random way to write total as a sum of `count` positive numbers
        cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.zeros(0, int)
        return np.diff(np.concatenate([[0], cuts, [total]]))

    lengths = np.stack([parts(length - noisy), parts(noisy)], 1).ravel()
    return np.repeat(np.arange(2 * count) % 2 == 1, lengths)


# ---- T5's table of objectives (2020, table 3): (tokens, noise) -> (inputs, targets) ---------------------------------------------


def prefix_lm(ids, cut):
    """The first part is given, the rest is asked for."""
    return ids[:cut], ids[cut:]


def bert_style(ids, noise, mask, others=None):
    """Chosen tokens become `mask`, or where `others` (one a token) is not negative, that; all of the text is asked for."""
    spoilt = np.where(noise, mask if others is None else np.where(others >= 0, others, mask), ids)
    return spoilt, ids


def deshuffle(ids, order):
    """The tokens in another order; the right one is asked for."""
    return ids[order], ids


def mass_style(ids, noise, mask):
    """Chosen tokens become `mask`; all of the text is asked for (as T5 simplified MASS)."""
    return np.where(noise, mask, ids), ids


def replace_spans(ids, noise, sentinels):
    """Each run of noise becomes one sentinel; asked for are the runs behind their sentinels, and one more to end."""
    cut = runs(noise)
    if len(cut) >= len(sentinels):
        raise ValueError(f"{len(cut)} spans need {len(cut) + 1} sentinels and there are {len(sentinels)}; lower the rate or the length")
    inputs, targets, at = [], [], 0
    for sentinel, (a, z) in zip(sentinels, cut):
        inputs += [ids[at:a], [sentinel]]
        targets += [[sentinel], ids[a:z]]
        at = z
    return np.concatenate([*inputs, ids[at:]]), np.concatenate([*targets, [sentinels[len(cut)]]])


def drop_tokens(ids, noise):
    """Chosen tokens are left out, and asked for."""
    return ids[~noise], ids[noise]


# ---- BART's noises (2020, section 2.2): tokens -> spoilt tokens ---------------------------------------------------------------


def mask_tokens(ids, rate, mask, rng):
    return np.where(rng.random(len(ids)) < rate, mask, ids)


def delete_tokens(ids, rate, rng):
    kept = ids[rng.random(len(ids)) >= rate]
    return kept if len(kept) else ids[:1]


def infill(ids, rate, mask, rng, mean=3.0):
    """Spans whose lengths are Poisson(mean) become one mask each, `rate` of the tokens in all; a length of 0 puts a mask between two
    tokens. Spans do not touch."""
    budget, lengths = round(rate * len(ids)), []
    while sum(lengths) < budget:
        lengths.append(int(min(rng.poisson(mean), budget - sum(lengths))))
    kept = len(ids) - budget
    lengths = np.array(lengths[: kept + 1])
    gaps = np.sort(rng.choice(kept + 1, len(lengths), replace=False))  # each between two tokens that stay
    gone = np.zeros(len(ids), bool)
    for start, n in zip(gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths):
        gone[start : start + n] = True
    return np.insert(ids[~gone], gaps, mask)


def permute_sentences(ids, ends_V, rng):
    """The sentences in another order; ends_V: does this token end a sentence?"""
    cut = np.flatnonzero(ends_V[ids]) + 1
    parts = np.split(ids, cut[cut < len(ids)])
    return np.concatenate([parts[i] for i in rng.permutation(len(parts))])


def rotate(ids, rng):
    """The text begins at another of its tokens."""
    return np.roll(ids, -int(rng.integers(0, len(ids))))
