"""Beam search (Graves, 2012; Wu et al., 2016, section 7 for the length penalty)."""

import torch

from .decoding import decoding, writing
from .sampling import ends


@torch.inference_mode()
def beam_search(model, prompts, beams=4, *, most=100, penalty=1.0, end=None, cached=True):
    """[[ids]] and their scores: the best continuation of each prompt, by log probability / length ** penalty.

    A row ends once `beams` hypotheses are finished and none still open is better, by its length so far, than the worst of them (one
    that would get better by growing is given up). The end token counts in the length. Raises ValueError for beams < 1.
    """
    if beams < 1:
        raise ValueError(f"beams={beams}: must be at least 1")
    with writing(model):
        return _search(model, prompts, beams, most, penalty, ends(model, end), cached)


def _search(model, prompts, K, most, penalty, end, cached):
    B = len(prompts)
    state = decoding(model, prompts, cached=cached, room=most, spread=K)
    device, first = state.ids.device, state.length
    state.select(torch.arange(B, device=device).repeat_interleave(K))
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the K copies of a prompt are one hypothesis at first
    finished = [[] for _ in range(B)]
    done = [False] * B
    each, many = K + len(end), K * (1 + max(1, len(end)))  # K of a step do not end, whatever happens
    for i in range(most):
        logits = state.logits.float()
        value, token_of = logits.topk(min(max(each, 2 * K), logits.shape[-1]))  # the best of all are among the best of each beam
        value = (scores[..., None] + (value - logits.logsumexp(-1, keepdim=True)).view(B, K, -1)).flatten(1)
        best, at = value.topk(min(many, value.shape[1]))
        token_of = token_of.view(B, -1).gather(1, at).tolist()
        wide = value.shape[1] // K
        rows, tokens, kept = [], [], []
        for b, (values, places) in enumerate(zip(best.tolist(), at.tolist())):
            going = []
            for rank, (value, place) in enumerate(zip(values, places)):
                beam, token = place // wide, token_of[b][rank]
                if token in end:
                    if rank < K and not done[b]:
                        ids = state.seen[b * K + beam, first:].tolist()
                        finished[b].append((value / (len(ids) + 1) ** penalty, ids))
                elif len(going) < K:
                    going.append((value, b * K + beam, token))
            while len(going) < K:  # all others end
                going.append((-torch.inf, b * K, 0))
            finished[b] = sorted(finished[b], key=lambda f: -f[0])[:K]
            if len(finished[b]) == K:
                done[b] = done[b] or finished[b][-1][0] >= going[0][0] / (i + 1) ** penalty
            kept.append([g[0] for g in going])
            rows += [g[1] for g in going]
            tokens += [g[2] for g in going]
        if all(done):
            break
        scores = torch.tensor(kept, device=device)
        state.select(torch.tensor(rows, device=device))
        spent = state.spent().tolist()  # the beams of a prompt are all of one length
        for b in range(B):
            if not done[b] and (i == most - 1 or spent[b * K]):  # what is open ends here
                done[b] = True
                for k in range(K):
                    ids = [*state.seen[b * K + k, first:].tolist(), tokens[b * K + k]]
                    finished[b].append((kept[b][k] / (i + 1) ** penalty, ids))
        if all(done):
            break
        state.push(torch.tensor(tokens, device=device))
    best = [max(f, key=lambda pair: pair[0], default=(0.0, [])) for f in finished]
    return [ids for _, ids in best], [score for score, _ in best]
