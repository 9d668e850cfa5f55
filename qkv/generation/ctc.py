"""Reading the text off scores for every vector and a blank (connectionist temporal classification, Graves et al., 2006).

Dims: B sounds, T vectors, V vocabulary with the blank.
"""

import math

import torch


def decode(logits_BTV, lengths_B, blank, beams=0):
    """[[ids]] of each sound: the best path without repetitions and blanks, or with beams the likeliest text among so many prefixes."""
    log = logits_BTV.float().log_softmax(-1).cpu()
    rows = [row[: int(n)] for row, n in zip(log, lengths_B)]
    return [prefixes(row, blank, beams)[0][0] if beams else greedy(row, blank) for row in rows]


def greedy(log_TV, blank):
    """The ids of the best path (section 3.2)."""
    path = torch.unique_consecutive(log_TV.argmax(-1)).tolist()
    return [i for i in path if i != blank]


def prefixes(log_TV, blank, beams, most=20):
    """[(ids, log probability)] of the likeliest texts: probabilities of all alignments of a prefix are added up, those that end in a blank
    apart from those that do not (Hannun et al., 2014, algorithm 1). most: tokens that are tried at each vector."""
    kept = {(): (0.0, -math.inf)}  # prefix -> (log probability of ending in a blank, of not)
    for row in log_TV:
        best = set(row.topk(min(most, len(row))).indices.tolist()) - {blank}
        row, new = row.tolist(), {}

        def add(prefix, with_blank=-math.inf, without=-math.inf, new=new):
            a, b = new.get(prefix, (-math.inf, -math.inf))
            new[prefix] = _sum(a, with_blank), _sum(b, without)

        for prefix, (b, n) in kept.items():
            both = _sum(b, n)
            add(prefix, with_blank=both + row[blank])
            if prefix:
                add(prefix, without=n + row[prefix[-1]])
            for token in best:
                same = prefix and token == prefix[-1]  # a second one needs a blank between
                add((*prefix, token), without=(b if same else both) + row[token])
        kept = {p: s for p, s in sorted(new.items(), key=lambda e: -_sum(*e[1]))[:beams] if _sum(*s) > -math.inf}
    return [(list(p), _sum(*s)) for p, s in kept.items()]


def _sum(a, b):
    """log(exp(a) + exp(b))"""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
