"""Cross-entropy of a vocabulary's scores without ever holding all of them.

Dims: N places, D model, V vocabulary.
"""

import torch
import torch.nn.functional as F

from ..core import transformed

IGNORE = -100
WHOLE = 2**24  # scores that are held at once: 64 MB in float32
COLUMNS = 2048  # scores that one product makes: a product as wide as the vocabulary runs at two thirds of the speed (measured)


def token_loss(x_ND, weight_VD, bias_V, labels_N, smoothing=0.0):
    """Summed cross-entropy of labels (IGNORE: none) given scores x W' + b, with label smoothing (Szegedy et al., 2016, section 7).

    Returns (loss, the same without smoothing, and, where no gradients are wanted, how many labels have the highest score); the last
    two are detached. Few scores are formed as they are; many in pieces whose gradients are worked out at once (no score is computed twice).
    """
    if x_ND.shape[0] * weight_VD.shape[0] <= WHOLE or transformed():
        return loss_of_scores(F.linear(x_ND, weight_VD, bias_V), labels_N, smoothing)
    return _in_pieces(x_ND, weight_VD, bias_V, labels_N, smoothing)


def loss_of_scores(logits_NV, labels_N, smoothing=0.0):
    """What `token_loss` returns, of scores that are there."""
    logits = logits_NV.float() if logits_NV.dtype in (torch.bfloat16, torch.float16) else logits_NV
    hits = ((logits.detach().argmax(-1) == labels_N) & (labels_N != IGNORE)).sum() if not torch.is_grad_enabled() else None
    if not smoothing:
        plain = F.cross_entropy(logits, labels_N, ignore_index=IGNORE, reduction="sum")
        return plain, plain.detach(), hits
    log = F.log_softmax(logits, -1)
    plain = F.nll_loss(log, labels_N, ignore_index=IGNORE, reduction="sum")
    even = -log.mean(-1)[labels_N != IGNORE].sum()
    return (1 - smoothing) * plain + smoothing * even, plain.detach(), hits


@torch.compiler.disable
def _in_pieces(x, weight, bias, labels, smoothing):
    if not torch.is_grad_enabled():  # the function below goes by what its inputs require
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    return Pieces.apply(x, weight, bias, labels, smoothing)


class Pieces(torch.autograd.Function):
    """The loss, piece by piece; where gradients are wanted, each piece's scores become their own gradient in place."""

    @staticmethod
    def forward(ctx, x_ND, weight_VD, bias_V, labels_N, smoothing):
        device, wants = x_ND.device.type, any(ctx.needs_input_grad[:3])
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        V, wide = weight_VD.shape[0], torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            x, w = (x_ND, weight_VD) if narrow is None else (x_ND.to(narrow), weight_VD.to(narrow))
            dx = torch.empty_like(x_ND) if wants else None
            dw = torch.zeros_like(weight_VD, dtype=torch.promote_types(weight_VD.dtype, torch.float32)) if wants else None
            db = torch.zeros_like(bias_V, dtype=wide) if wants and bias_V is not None else None
            loss, plain, hits = (
                torch.zeros((), dtype=wide, device=x.device),
                torch.zeros((), dtype=wide, device=x.device),
                torch.zeros((), dtype=torch.long, device=x.device),
            )
            rows = max(1, WHOLE // V)
            room = torch.empty(min(rows, len(x)), V, dtype=x.dtype, device=x.device)
            for i in range(0, len(x), rows):
                part, label = x[i : i + rows], labels_N[i : i + rows]
                counts = label != IGNORE
                at = label.where(counts, 0)[:, None]
                scores = room[: len(part)]
                for j in range(0, V, COLUMNS):
                    torch.mm(part, w[j : j + COLUMNS].T, out=scores[:, j : j + COLUMNS])
                scores = scores.to(wide)
                if bias_V is not None:
                    scores += bias_V
                best = scores.amax(-1, keepdim=True)
                if not wants:
                    hits += ((scores.argmax(-1) == label) & counts).sum()
                right = scores.gather(1, at)
                even = scores.mean(-1, keepdim=True) if smoothing else 0.0
                total = scores.sub_(best).exp_().sum(-1, keepdim=True)
                log_total = total.log() + best
                each = log_total - right
                plain += each[:, 0][counts].sum()
                loss += ((1 - smoothing) * each + smoothing * (log_total - even))[:, 0][counts].sum()
                if wants:
                    g = scores.div_(total)
                    if smoothing:
                        g -= smoothing / V
                    g.scatter_add_(1, at, torch.full_like(right, smoothing - 1))
                    g *= counts[:, None]
                    if db is not None:
                        db += g.sum(0)
                    g = g.to(x.dtype)
                    dx[i : i + rows] = g @ w
                    if g.dtype == dw.dtype:
                        dw.addmm_(g.T, part)
                    else:
                        dw += g.T @ part
        ctx.gradients = dx, dw, db
        ctx.mark_non_differentiable(plain, hits)
        return loss, plain, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by, *_):
        dx, dw, db = ctx.gradients
        del ctx.gradients  # scaled in place: they serve once
        return dx.mul_(by), dw.mul_(by), None if db is None else db.mul_(by), None, None
