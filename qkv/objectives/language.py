"""Objectives that predict tokens or sentences: causal, prefix, masked (tokens, words, spans), next sentence and sentence order,
replaced tokens, contrastive pairs.

Dims: B rows, T tokens, D model, N scored places, V vocabulary.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from ..core.layers import LayerNorm
from ..data.batches import Batch, Pairs, padded
from ..data.batches import rng as keyed
from ..models.encoder import Encoder
from ..models.loss import IGNORE
from . import noise
from .base import Loss, Objective, with_auxiliary


def packed(ids, documents, position):
    inputs = {"input_ids": ids}
    if documents is not None:
        inputs |= {"documents": documents, "position_ids": position}
    return inputs


class Causal(Objective):
    """Next token (Radford et al., 2018). On pairs: the answer's tokens, after the question and a separator."""

    extra, joined, reads, predicts_all = 1, True, ("text", "pairs"), True
    topologies: tuple = ("Decoder", "Recurrent")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def batch(self, rows, rng):
        ids, documents, position = rows
        labels = ids[:, 1:].clone()
        if documents is not None:
            labels[documents[:, 1:] != documents[:, :-1]] = IGNORE  # a document does not predict the next one
            documents, position = documents[:, :-1].contiguous(), position[:, :-1].contiguous()
            count = int((labels != IGNORE).sum())
        else:
            count = labels.numel()
        return Batch(packed(ids[:, :-1].contiguous(), documents, position), labels.reshape(-1), count, labels.numel())

    def pairs(self, pairs, rng):
        t = self.tokenizer
        ids, mask = padded([[t.bos, *a, t.sep, *b, t.eos] for a, b in pairs], t.pad)
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        for row, (a, _) in enumerate(pairs):
            labels[row, : len(a) + 1] = IGNORE  # the question is given
        return Batch({"input_ids": ids[:, :-1].contiguous()}, labels.reshape(-1), int((labels != IGNORE).sum()), int(mask.sum()))


class Prefix(Causal):
    """Next token, of what follows a prefix of random length that is read both ways (T5, 2020, section 3.2.3); the model's pattern
    is prefix."""

    topologies, predicts_all = ("Decoder",), False

    def batch(self, rows, rng):
        ids, _, _ = rows
        B, T = ids.shape
        cut = torch.from_numpy(rng.integers(1, max(2, T - 1), B))
        prefix = torch.arange(T - 1)[None] < cut[:, None]
        labels = ids[:, 1:].masked_fill(torch.arange(1, T)[None] < cut[:, None], IGNORE)
        inputs = {"input_ids": ids[:, :-1].contiguous(), "prefix": prefix.long()}
        return Batch(inputs, labels.reshape(-1), int((labels != IGNORE).sum()), B * (T - 1))

    def pairs(self, pairs, rng):
        batch = super().pairs(pairs, rng)
        given = torch.tensor([len(a) + 2 for a, _ in pairs])
        batch.inputs["prefix"] = (torch.arange(batch.inputs["input_ids"].shape[1])[None] < given[:, None]).long()
        return batch


class Masked(Objective):
    """Masked tokens (BERT, 2018, section 3.1): `rate` of the tokens are chosen, `mask` of them become [MASK], `random` another
    token, the rest stay.

    unit: token; word, all pieces of a word together; span, runs of words of geometric length (SpanBERT, 2020), whose tokens share
    one fate. static: the same place of a text is always chosen, else anew at every step. boundary: SpanBERT's second loss, each token
    of a span from the tokens around it (section 3.2).
    """

    topologies, least = ("Encoder",), 1

    def __init__(self, tokenizer, rate=0.15, mask=0.8, random=0.1, unit="token", static=False, boundary=False, p=0.2, most=10):
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate}: must be between 0 and 1")
        if mask < 0 or random < 0 or mask + random > 1 + 1e-9:
            raise ValueError(f"mask={mask} and random={random} must be shares of 1, at most 1 together")
        if unit not in ("token", "word", "span"):
            raise ValueError(f"unit={unit!r} is not one of token, word, span")
        if boundary and unit != "span":
            raise ValueError("boundary=true predicts spans from the tokens around them; it needs unit=span")
        if static and unit == "span":
            raise ValueError("static=true is for unit=token or word; spans are drawn anew")
        if tokenizer.mask is None:
            raise ValueError("masked tokens need a tokenizer with a [MASK] token")
        self.tokenizer, self.rate, self.mask, self.random, self.unit, self.static = tokenizer, rate, mask, random, unit, static
        self.boundary, self.p, self.most = boundary, p, most
        self.begins = tokenizer.word_starts() if unit != "token" else None
        self.special = tokenizer.specials()
        self.ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in set(self.special.tolist())])

    def prepare(self, model):
        if self.boundary:
            self.module = Boundary(model.config.dim, model.config.embed_dim or model.config.dim, PIECES * self.most)

    def choose(self, ids, rng):
        """(chosen (B, T), fate (B, T) in [0, 1), number of the span or -1 (B, T))."""
        allowed = ~torch.isin(ids, self.special)
        fate = noise.place_scores(ids, 1) if self.static else noise.uniform(rng, ids.shape)
        if self.unit == "span":
            chosen, span = noise.spans(allowed, noise.words(ids, self.begins), self.rate, rng, self.p, self.most)
            return chosen, fate.gather(1, span.clamp(min=0)), span
        score = noise.place_scores(ids) if self.static else noise.uniform(rng, ids.shape)
        if self.unit == "word":
            chosen = noise.lowest_words(score, allowed, noise.words(ids, self.begins), self.rate)
        else:
            chosen = noise.lowest(score, allowed, self.rate)
        return chosen, fate, None

    def corrupt(self, ids, rng):
        """(corrupted ids (B, T), chosen (B, T) bool, span (B, T) or None)."""
        chosen, fate, span = self.choose(ids, rng)
        other = self.ordinary[torch.from_numpy(rng.integers(0, len(self.ordinary), tuple(ids.shape)))]
        out = torch.where(chosen & (fate < self.mask), self.tokenizer.mask, ids)
        return torch.where(chosen & (fate >= self.mask) & (fate < self.mask + self.random), other, out), chosen, span

    def batch(self, rows, rng):
        ids, documents, position = rows
        corrupted, chosen, span = self.corrupt(ids, rng)
        at = chosen.flatten().nonzero()[:, 0]
        inputs = packed(corrupted, documents, position) | {"at": at}
        batch = Batch(inputs, ids.flatten()[at], len(at), ids.numel())
        if self.boundary:
            batch.targets["span"] = span
        return batch

    def loss(self, model, batch):
        if not self.boundary:
            return super().loss(model, batch)
        out = model(**batch.inputs, labels=batch.labels, **batch.targets)
        return Loss(with_auxiliary(out["loss"], out, batch.count), batch.count, {"loss": out["plain"], "accuracy": out["hits"]})

    def run(self, model, *, labels, span, at, **inputs):
        out = model(**inputs, at=at, labels=labels)
        hidden = out["hidden"]
        B, T, _ = hidden.shape
        index, row = at % T, at // T
        edge = torch.ones_like(span, dtype=torch.bool)
        edge[:, 1:] = span[:, 1:] != span[:, :-1]
        start = torch.where(edge, torch.arange(T, device=at.device), 0).cummax(1)[0].flatten()[at]
        stop = torch.where(
            edge.roll(-1, 1).index_fill(1, torch.tensor([T - 1], device=at.device), True), torch.arange(T, device=at.device), T
        )
        stop = stop.flip(1).cummin(1)[0].flip(1).flatten()[at]
        left, right = hidden[row, (start - 1).clamp(min=0)], hidden[row, (stop + 1).clamp(max=T - 1)]
        states = self.module(left, right, index - start)
        more, _, _ = model.head.loss(states, labels)
        return out | {"loss": out["loss"] + more}


PIECES = 8  # of a word, at most, that Boundary tells apart


class Boundary(nn.Module):
    """States of the tokens of a span from those on both sides of it and their place in it: two layers with GELU and norms."""

    def __init__(self, dim, out, most):
        super().__init__()
        self.place = nn.Embedding(most, dim)
        self.up, self.norm1 = nn.Linear(3 * dim, dim), LayerNorm(dim)
        self.down, self.norm2 = nn.Linear(dim, out), LayerNorm(out)
        nn.init.normal_(self.place.weight, std=0.02)

    def forward(self, left_ND, right_ND, place_N):
        x = self.norm1(F.gelu(self.up(torch.cat([left_ND, right_ND, self.place(place_N.clamp(max=self.place.num_embeddings - 1))], -1))))
        return self.norm2(F.gelu(self.down(x)))


class Sentences(Masked):
    """Two pieces of text, [CLS] A [SEP] B [SEP]: does B follow A (next: half of the time another text's; BERT, 2018, section 3.1),
    or do they stand in order (order: half of the time swapped; ALBERT, 2020, section 3.1)? With masked tokens where the model has
    a language head (output=pretraining), alone with output=next."""

    outputs = ("pretraining", "pretraining-order", "next")
    extra, least = -3, 2

    def __init__(self, tokenizer, config, second=None, rate=0.15, mask=0.8, random=0.1, unit="token"):
        super().__init__(tokenizer, rate, mask, random, unit)
        self.second = second or ("order" if config.output == "pretraining-order" else "next")
        if self.second not in ("next", "order"):
            raise ValueError(f"{self.second!r} is not next or order")
        if tokenizer.cls is None or tokenizer.sep is None:
            raise ValueError("sentence pairs need a tokenizer with [CLS] and [SEP]")
        if config.types < 2:
            raise ValueError(f"sentence pairs are told apart by token types: the model needs types=2, not {config.types}")
        self.alone = config.output == "next"
        self.scores_tokens = False
        self.name = {"pretraining": "seq_relationship_logits", "pretraining-order": "sop_logits", "next": "logits"}[config.output]

    def batch(self, rows, rng):
        ids, _, _ = rows
        B, T = ids.shape
        t, cut = self.tokenizer, int(rng.integers(max(1, T // 4), max(2, 3 * T // 4)))
        wrong = torch.from_numpy(rng.random(B) < 0.5)
        first, second = ids[:, :cut], ids[:, cut:]
        if self.second == "next":
            if B == 1:
                wrong[:] = False
            shift = int(rng.integers(1, B)) if B > 1 else 0
            second = torch.where(wrong[:, None], second.roll(shift, 0), second)
            parts = torch.cat([first, second], 1)
            lengths = torch.full((B,), cut)
        else:
            parts = torch.where(wrong[:, None], torch.cat([second, first], 1), ids)
            lengths = torch.where(wrong, T - cut, cut)
        place = torch.arange(T)[None]
        at = torch.where(place < lengths[:, None], place + 1, place + 2).expand(B, T)  # behind [CLS], and behind the first [SEP]
        whole = torch.full((B, T + 3), t.sep)
        whole[:, 0] = t.cls
        whole.scatter_(1, at, parts)
        types = (torch.arange(T + 3)[None] > lengths[:, None] + 1).long()
        if self.alone:
            return Batch({"input_ids": whole, "token_type_ids": types}, wrong.long(), B, whole.numel())
        corrupted, chosen, _ = self.corrupt(whole, rng)
        spots = chosen.flatten().nonzero()[:, 0]
        inputs = {"input_ids": corrupted, "token_type_ids": types, "at": spots}
        return Batch(inputs, whole.flatten()[spots], len(spots), whole.numel(), {"wrong": wrong.long()})

    def loss(self, model, batch):
        if self.alone:
            out = model(**batch.inputs)
            scores = out["logits"].float()
            value = F.cross_entropy(scores, batch.labels.clamp(min=0), reduction="none") * (batch.labels >= 0)
            hits = ((scores.argmax(-1) == batch.labels) & (batch.labels >= 0)).sum()
            return Loss(with_auxiliary(value.sum(), out, batch.count), batch.count, {"loss": value.sum().detach(), "accuracy": hits})
        out, wrong = model(**batch.inputs, labels=batch.labels), batch.targets["wrong"]
        scores = out[self.name].float()
        weight = batch.count / len(wrong)  # one target a row beside many: a row's share of them
        second = F.cross_entropy(scores, wrong, reduction="sum") * weight
        hits = (scores.argmax(-1) == wrong).sum() * weight
        return Loss(
            with_auxiliary(out["loss"] + second, out, batch.count),
            batch.count,
            {"loss": out["plain"] + second.detach(), "accuracy": out["hits"], "pairs": hits},
        )


class Detection(Masked):
    """Replaced tokens (ELECTRA, 2020): a small generator fills masked places, and the model says of every token whether it is the
    original one. Both are trained together; the embedding is shared. size: the generator's width, as a share. weight: of the
    detection loss (section 3.1)."""

    outputs, scores_tokens = ("detect",), False

    def __init__(self, tokenizer, rate=0.15, size=0.25, weight=50.0, unit="token"):
        super().__init__(tokenizer, rate, 1.0, 0.0, unit)
        if not 0 < size <= 1 or weight <= 0:
            raise ValueError(f"size={size} must be in (0, 1], and weight={weight} above 0")
        self.size, self.weight = size, weight

    def prepare(self, model):
        cfg = model.config
        heads = max(1, round(cfg.heads * self.size))
        dim = max(heads, round(cfg.dim * self.size / heads) * heads)
        fields = {f: getattr(cfg, f) for f in cfg.__dataclass_fields__} | dict(
            dim=dim, heads=heads, hidden=max(1, round(cfg.wide * self.size)), kv_heads=None, head_dim=None, output="lm",
            embed_dim=cfg.embed_dim or cfg.dim, transform="gelu",
        )  # fmt: skip
        generator = Encoder(**fields).build()
        for shared in ("token", "position", "types"):
            setattr(generator.embed, shared, getattr(model.embed, shared))
        generator.head.out.weight = model.embed.token.weight
        self.module = generator

    def batch(self, rows, rng):
        batch = super().batch(rows, rng)
        batch.targets["original"] = rows[0]
        batch.targets["draw"] = noise.uniform(rng, (rows[0].shape[0], 1))  # what the generator's samples are drawn from
        return batch

    def loss(self, model, batch):
        out = model(**batch.inputs, **batch.targets, labels=batch.labels)
        return Loss(out["loss"], batch.count, {"loss": out["loss"].detach(), "accuracy": out["hits"], "generator": out["generator"]})

    @torch.inference_mode()
    def show(self, model, run):
        """The beginning of a held-out row with what the generator replaced and what the model took for replaced."""
        batch = self.batch(run.valid.rows(run.valid.in_order()[:1]), keyed(0)).to(run.device)
        out = self.run(model, **batch.inputs, **batch.targets, labels=batch.labels)
        ids, truth, said = (x[0, :60].tolist() for x in (out["ids"], out["replaced"] > 0, out["judged"] > 0))
        mark = lambda word, was, now: f"[{word}]" if was and now else f"{word}?" if now else f"{word}!" if was else word
        words = (mark(run.tokenizer.token(i), a, b) for i, a, b in zip(ids, truth, said))
        return " ".join(words) + "   ([word]: replaced and found, word!: not found, word?: wrongly taken for replaced)"

    def run(self, model, *, original, draw, labels, at, input_ids, **inputs):
        scores = self.module(input_ids=input_ids, at=at, **inputs)["logits"].float()
        filled = F.cross_entropy(scores, labels, reduction="sum")
        with torch.no_grad():
            seed = int(draw.double().sum() * 2**32)
            g = torch.Generator(device=scores.device).manual_seed(seed)
            guess = (scores.softmax(-1) / torch.empty_like(scores).exponential_(generator=g)).argmax(-1)  # a sample
            ids = original.clone()
            ids.view(-1)[at] = guess
            replaced = (ids != original).float()
        out = model(input_ids=ids, **inputs)
        judged = out["logits"].float()
        wrong = F.binary_cross_entropy_with_logits(judged, replaced, reduction="mean")  # over all tokens
        share = len(at)
        hits = ((judged > 0) == replaced.bool()).float().mean() * share
        loss = with_auxiliary(filled + self.weight * wrong * share, out, share)
        return {"loss": loss, "generator": filled.detach(), "hits": hits, "ids": ids, "replaced": replaced,
                "judged": judged}  # fmt: skip


class Contrastive(Objective):
    """Each text is nearest to its partner among all of the batch (in-batch negatives; SimCSE, 2021, section 3; Sentence-T5): of pairs,
    or of the two halves of a piece of running text. temperature: cosines are divided by it. pool: mean or cls."""

    topologies, outputs, reads, scores_tokens, fewest = ("Encoder",), ("hidden",), ("text", "pairs"), False, 2

    def __init__(self, tokenizer, temperature=0.05, pool="mean"):
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool={pool!r} is not mean or cls")
        self.tokenizer, self.temperature, self.pool = tokenizer, temperature, pool

    def batch(self, rows, rng):
        return self.pairs(self.halves(rows[0]), rng)

    @staticmethod
    def halves(ids_BT):
        half = ids_BT.shape[1] // 2
        return [(a[:half].tolist(), a[half:].tolist()) for a in ids_BT]

    def held_out(self, windows, rows):
        """As few batches as there may be with `rows` rows at least: the last row, a shorter one, has its partner sought among others too."""
        pairs = [pair for ids, _, _ in windows.cover(rows, 0, self.least) for pair in self.halves(ids)]
        count = max(1, len(pairs) // max(self.fewest, rows))
        cuts = [len(pairs) * i // count for i in range(count + 1)]
        return (self.pairs(pairs[a:z], None) for a, z in itertools.pairwise(cuts) if z > a)

    @torch.inference_mode()
    def show(self, model, run):
        """How many of a few held-out texts are nearest to their partner."""
        few = run.valid.pairs[:32] if isinstance(run.valid, Pairs) else self.halves(run.valid.rows(run.valid.in_order()[:32])[0])
        was = model.training
        loss = self.loss(model.eval(), self.pairs(few, None).to(run.device))
        model.train(was)
        return f"{int(loss.metrics['accuracy'])} of {loss.count} held-out texts are nearest to their own partner"

    def pairs(self, pairs, rng):
        t = self.tokenizer
        before, after = ([] if i is None else [i] for i in (t.cls, t.sep))
        ids, mask = padded([[*before, *side, *after] for pair in pairs for side in pair], t.pad)
        count = len(pairs) if len(pairs) > 1 else 0  # of one alone there is nothing to choose
        labels = torch.arange(len(pairs)) if count else torch.tensor([IGNORE])
        return Batch({"input_ids": ids, "attention_mask": mask.long()}, labels, count, int(mask.sum()), whole=True)

    def loss(self, model, batch):
        out, mask = model(**batch.inputs), batch.inputs["attention_mask"][..., None]
        hidden = out["hidden"].float()
        x = hidden[:, 0] if self.pool == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        a, b = F.normalize(x, dim=-1).unflatten(0, (-1, 2)).unbind(1)
        scores = a @ b.T / self.temperature
        value = (F.cross_entropy(scores, batch.labels, reduction="sum") + F.cross_entropy(scores.T, batch.labels, reduction="sum")) / 2
        hits = (scores.argmax(-1) == batch.labels).sum()
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach(), "accuracy": hits})
