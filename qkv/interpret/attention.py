"""Attention weights of any model, and what flows through all layers.

Dims: B rows, L layers, H heads, T queries, S keys.
"""

import contextlib

import torch

from ..core import Attention


@contextlib.contextmanager
def kept(model, cross=False):
    """A list that takes the weights (B, H, T, S) of every self-attention (cross: every cross-attention) of the passes within, in their
    order. Raises ValueError for a kernel that forms none."""
    out, hooks = [], []
    for m in model.modules():
        if isinstance(m, Attention) and m.cross is cross:
            if not hasattr(m.kernel, "weights"):
                raise ValueError(f"kernel {type(m.kernel).__name__} forms no weights to look at; use kernel=softmax")
            hooks.append(m.kernel.weights.register_forward_hook(lambda mod, given, w: out.append(w.detach())))
    try:
        yield out
    finally:
        for h in hooks:
            h.remove()


@torch.inference_mode()
def weights(model, cross=False, **inputs):
    """(L, B, H, T, S) of one pass. The model keeps its mode."""
    was = model.training
    model.eval()
    with kept(model, cross) as out:
        model(**inputs)
    model.train(was)
    return torch.stack(out)


def alignment(model, source, written):
    """(T, S) where each of the ids of a written text looked in the source, the mean over layers and heads, of an encoder-decoder. Raises ValueError for one
    without cross-attention."""
    start = model.config.start if model.config.start is not None else model.config.bos
    device = next(model.parameters()).device
    ids = lambda x: torch.tensor([x], device=device)
    with kept(model, cross=True) as out, torch.inference_mode():
        model(input_ids=ids(source), decoder_input_ids=ids([start, *written]))
    if not out:
        raise ValueError("this model looks at nothing while it writes; it has no cross-attention")
    steps = getattr(model, "keeps_state", False)  # looks once a token, and not once a layer
    looked = torch.cat(out, 2)[0].mean(0) if steps else torch.stack(out)[:, 0].mean((0, 1))
    return looked[: len(written)].float().cpu()


def rollout(weights_LBHTS):
    """(B, T, T) how much of each input token is in each output token: the products over layers of the mean over heads, half of which is what
    passes by the residual branch (Abnar and Zuidema, 2020, section 3)."""
    mean = weights_LBHTS.float().mean(2)
    mean = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device)
    out = mean[0]
    for layer in mean[1:]:
        out = layer @ out
    return out
