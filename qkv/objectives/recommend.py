"""What a user takes next: hidden items of a history (BERT4Rec, Sun et al., 2019), or each next one (GRU4Rec).

Dims: B users, T items of a history, V items.
"""

import collections

import torch

from ..data.batches import Batch, padded
from ..data.examples import Example, paths_of
from ..data.text import DataError, read_text
from ..models.loss import IGNORE
from .base import Loss, with_auxiliary
from .ranks import places, ranking
from .tasks import Task


class Recommend(Task):
    """Lines `user item` in the order of time. Of each user the last item is the test, the one before it held out (leave-one-out). An encoder is trained on hidden items
    (cloze, section 3.6): a share `rate`, and in one of `last` rows the last one alone, as it is asked for; a recurrent model on every next item. Ranked among all items but
    those the user has taken: hr and ndcg at 10; pop_ndcg10 is that of a list of what most users took. judged: users of the held-out part that are asked, 0 for all."""

    outputs = {"Encoder": "items", "Recurrent": "items"}
    metric, kind, parts = "ndcg10", "recommend", True

    def __init__(self, tokenizer, config, length, rate=0.2, last=5, judged=2000):
        if not 0 < rate < 1 or last < 0 or judged < 0:
            raise ValueError(f"rate={rate} must be between 0 and 1, last={last} and judged={judged} 0 or more")
        self.tokenizer, self.config, self.length, self.rate, self.last, self.judged = tokenizer, config, length, rate, last, judged
        self.cloze, self.mask = type(config).__name__ == "Encoder", config.vocab - 1
        self.popular = None

    @classmethod
    def read(cls, cfg, source, part, whole=False):
        """The examples of a part; whole: of every user all that was taken."""
        users = collections.OrderedDict()
        for path in paths_of(source, "train"):
            for number, line in enumerate(read_text(path, cfg.errors).splitlines(), 1):
                row = line.split()
                if not row:
                    continue
                if len(row) < 2:
                    raise DataError(f"{path}, row {number}: '{line[:60]}' is no user and item; a row is `user item`, in the order of time")
                users.setdefault(row[0], []).append(row[1])
        if whole:
            return [Example(" ".join(taken), where=f"user {user}") for user, taken in users.items()]
        back = {"train": 2, "valid": 1, "test": 0}[part]
        out = []
        for user, taken in users.items():
            if len(taken) < 3:  # too short to hold anything out
                if part == "train":
                    out.append(Example(" ".join(taken), where=f"user {user}"))
                continue
            if part == "train":
                out.append(Example(" ".join(taken[:-2]), where=f"user {user}"))
            else:
                out.append(Example(" ".join(taken[: len(taken) - 1 - back]), label=taken[len(taken) - 1 - back], where=f"user {user}"))
        if not out:
            raise DataError(f"{source}: no user has three items or more; one is tested, one held out, one is needed to begin from")
        return out

    @classmethod
    def shape(cls, examples):
        return {"unsaid": 1}

    @classmethod
    def words(cls, example):
        return [example.text]

    def encode(self, examples, training=False):
        out = []
        for e, ids in zip(examples, self.tokenizer.encode_all([e.text for e in examples])):
            out.append(
                {"ids": ids[-self.length :] if training else ids[-(self.length - 1) :], "wanted": e.label, "where": e.where, "taken": ids}
            )
        if training:
            self.popular = torch.bincount(torch.tensor([i for o in out for i in o["taken"]]), minlength=self.config.vocab)[
                : self.mask
            ].float()
            return out
        known = set(self.tokenizer.engine.get_vocab())
        out = [o for o in out if o["wanted"] in known]  # an item that nobody took in training cannot be named
        return out[:: max(1, len(out) // self.judged)][: self.judged] if self.judged else out

    def pairs(self, items, rng):
        rows = [i["ids"] for i in items]
        if rng is None:
            rows = [[*r, self.mask] if self.cloze else r for r in rows]
            ids, mask = padded(rows, self.config.pad)
            at = torch.tensor([b * ids.shape[1] + len(r) - 1 for b, r in enumerate(rows)])
            labels = torch.tensor([self.tokenizer.encode(i["wanted"])[0] if i["wanted"] else IGNORE for i in items])
            return Batch({"input_ids": ids, "attention_mask": mask.long(), "at": at}, labels, len(items), int(mask.sum()))
        if not self.cloze:
            ids, mask = padded(rows, self.config.pad)
            following = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE).flatten()
            at = (following != IGNORE).nonzero()[:, 0]
            flat = at // max(1, ids.shape[1] - 1) * ids.shape[1] + at % max(1, ids.shape[1] - 1)
            return Batch({"input_ids": ids, "attention_mask": mask.long(), "at": flat}, following[at], len(at), int(mask.sum()))
        ids, mask = padded(rows, self.config.pad)
        hidden = torch.from_numpy(rng.random(ids.shape)) < self.rate
        for b, r in enumerate(rows):
            if self.last and rng.integers(0, self.last) == 0:
                hidden[b] = False
            if not bool(hidden[b, : len(r)].any()):
                hidden[b, len(r) - 1] = True
        hidden &= mask
        at = hidden.flatten().nonzero()[:, 0]
        return Batch(
            {"input_ids": ids.masked_fill(hidden, self.mask), "attention_mask": mask.long(), "at": at},
            ids.flatten()[at],
            len(at),
            int(mask.sum()),
        )

    def loss(self, model, batch):
        out = model(**batch.inputs, labels=batch.labels)
        return Loss(with_auxiliary(out["loss"], out, batch.count), batch.count, {"loss": out["plain"]})

    @torch.inference_mode()
    def best(self, model, items, top, seen=False):
        """[(item, its share of the softmax over all that may be named)] after items, the oldest first; seen: what was taken may be named again."""
        ids = self.tokenizer.encode(" ".join(items))[-(self.length - 1) :]
        batch = self.pairs([{"ids": ids, "wanted": None}], None)
        scores = model.eval()(**batch.inputs)["logits"][-1].float()
        scores[[0, *([] if seen else self.tokenizer.encode(" ".join(items)))]] = -torch.inf
        share = scores.softmax(-1).topk(min(top, len(scores)))
        return [(self.tokenizer.token(i), p) for p, i in zip(share.values.tolist(), share.indices.tolist()) if p > 0]

    @torch.inference_mode()
    def predict(self, model, items, device="cpu", top=10):
        """[(items in the order of their scores, rank of the wanted one, its rank by popularity)]; ranks from 0 on,
        None where nothing is wanted. Of items that are scored alike, the one seen first in training comes first."""
        batch = self.pairs(items, None).to(device)
        scores = model(**batch.inputs)["logits"].float().cpu()
        out = []
        for row, i, wanted in zip(scores, items, batch.labels.tolist()):
            out_of = [0, *(t for t in i["taken"] if t != wanted and t < self.mask)]  # what cannot be named
            row[out_of] = -torch.inf
            order = row.sort(descending=True, stable=True).indices.tolist()
            best = [self.tokenizer.token(t) for t in order[: min(top, len(row) - len(set(out_of)))]]
            rank = place = None
            if wanted != IGNORE:
                rank = int(places(row[None], torch.tensor([wanted])))
            if wanted != IGNORE and self.popular is not None:
                popular = self.popular.clone()
                popular[out_of] = -1
                place = int(places(popular[None], torch.tensor([wanted])))
            out.append((best, rank, place))
        return out

    def scores(self, items, said):
        """{ndcg10, hr10} of the model, and where training was seen, of what most users took."""
        popular = [s[2] for s in said if s[2] is not None]
        held = ranking([s[1] for s in said], 10)
        return held | ({f"pop_{name}": value for name, value in ranking(popular, 10).items()} if popular else {})

    def show(self, model, run):
        items = run.valid.pairs[:3]
        said = self.answered(model, items, run.device, top=3)
        return "\n".join(
            f"{' '.join(self.tokenizer.token(t) for t in i['taken'][-5:])}  ->  {', '.join(s[0])}   (taken: {i['wanted']})"
            for i, s in zip(items, said)
        )
