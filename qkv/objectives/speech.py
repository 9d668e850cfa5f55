"""Transcription: the words of a sound, by CTC or written by a decoder.

Dims: B sounds, F frames, M features of a frame, T vectors, L tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F

from ..data import audio
from ..data.batches import Batch, padded
from ..data.text import DataError
from ..models.loss import IGNORE
from .base import Loss, with_auxiliary
from .tasks import Task


class Transcribe(Task):
    """The words of a sound. A Conformer with output=ctc is trained on the sum over all alignments (Graves et al., 2006), an encoder-decoder
    on the next token. SpecAugment (Park et al., 2019, section 2) hides, in training, `bands` bands of at most a share `band` of the features and
    `spans` spans of at most a share `span` of the frames; shift: seconds of silence put before a sound, at most. beams: of the decoding."""

    outputs = {"SpeechEncoder": "ctc", "SpeechEncoderDecoder": "lm"}
    metric, kind = "right", "transcribe"

    def __init__(self, tokenizer, config, bands=2, band=0.15, spans=2, span=0.1, shift=0.0, beams=0, smoothing=0.0):
        if min(bands, spans, beams) < 0 or not 0 <= band <= 1 or not 0 <= span <= 1 or not 0 <= shift < 30:
            raise ValueError(
                f"bands={bands}, spans={spans} and beams={beams} must be 0 or more, band={band} and span={span} shares, shift={shift} seconds under 30"
            )
        self.tokenizer, self.config, self.topology = tokenizer, config, type(config).__name__
        self.bands, self.band, self.spans, self.span, self.shift, self.beams, self.smoothing = (
            bands,
            band,
            spans,
            span,
            shift,
            beams,
            smoothing,
        )
        self.ctc = config.output == "ctc"

    @classmethod
    def read(cls, cfg, source, part):
        found = audio.read(cfg, source, part)
        for e in found:
            if not e.label:
                raise DataError(
                    f"{e.where}: has no transcript; put it into a .txt beside it, a table (data.pair=COLUMN), its folder's name, or before the first _ of its name"
                )
        return found

    @classmethod
    def words(cls, example):
        return [example.label]

    def encode(self, examples, training=False):
        cfg, out = self.config, []
        written = self.tokenizer.encode_all([e.label for e in examples])
        for e, ids in zip(examples, written):
            if not self.ctc and len(ids) + 1 > cfg.length:
                raise DataError(f"{e.where}: its transcript has {len(ids)} tokens and the model writes {cfg.length - 1}")
            frames = audio.log_mel(audio.samples(e.text, e.where), cfg.features)
            out.append({"ids": range(len(frames)), "frames": frames, "target": ids, "wanted": e.label, "where": e.where})
        return out

    def frames(self, items, rng):
        """(B, F, M), and their lengths (B,). rng: of the training step, None where nothing is hidden."""
        rows = []
        for i in items:
            x = i["frames"]
            if rng is not None:
                x = self.hidden(x.clone(), rng)
                if self.shift:
                    x = torch.cat([x.new_full((int(rng.integers(0, int(100 * self.shift) + 1)), x.shape[1]), float(x.min())), x])
            rows.append(x)
        lengths = torch.tensor([len(x) for x in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def hidden(self, x_FM, rng):
        """Bands and spans set to the mean of the sound."""
        mean = x_FM.mean()
        for axis, count, share in ((1, self.bands, self.band), (0, self.spans, self.span)):
            n = x_FM.shape[axis]
            for _ in range(count):
                width = int(rng.integers(0, int(share * n) + 1))
                x_FM.narrow(axis, int(rng.integers(0, n - width + 1)), width).fill_(mean)
        return x_FM

    def pairs(self, items, rng):
        t, (x, lengths) = self.tokenizer, self.frames(items, rng)
        if self.ctc:
            targets, mask = padded([i["target"] or [IGNORE] for i in items], IGNORE)
            return Batch({"input_features": x, "lengths": lengths}, targets.flatten(), int((targets != IGNORE).sum()), int(lengths.sum()))
        target, mask = padded([[self.config.start, *i["target"], t.eos] for i in items], t.pad)
        labels = target[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        inputs = {"input_features": self.heard(x), "decoder_input_ids": target[:, :-1].contiguous()}
        return Batch(inputs, labels.reshape(-1), int(mask[:, 1:].sum()), int(lengths.sum()))

    def heard(self, x_BFM):
        """(B, M, F) of the encoder-decoder's window: cut, or silence behind."""
        window = 2 * self.config.frames
        x = x_BFM[:, :window]
        least = x.amin((1, 2), keepdim=True)
        x = torch.where((x == 0).all(-1, keepdim=True), least, x)  # what batching put behind a shorter sound
        return torch.cat([x, least.expand(-1, window - x.shape[1], x.shape[2])], 1).mT.contiguous()

    def loss(self, model, batch):
        if not self.ctc:
            return super().loss(model, batch)
        out = model(**batch.inputs)
        lengths = out["lengths"] if "lengths" in out else torch.full((len(out["logits"]),), out["logits"].shape[1])
        wanted = batch.labels.view(len(lengths), -1)
        there = wanted != IGNORE
        log = out["logits"].float().log_softmax(-1).transpose(0, 1)
        value = F.ctc_loss(log, wanted[there].cpu(), lengths.cpu(), there.sum(1).cpu(), self.config.pad, "sum", zero_infinity=True)
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach()})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The words heard in each item."""
        from ..generation import ctc, generate
        from ..generation.beam import beam_search

        x, lengths = self.frames(items, None)
        if self.ctc:
            out = model(input_features=x.to(device), lengths=lengths.to(device))
            lengths = out["lengths"] if "lengths" in out else torch.full((len(items),), out["logits"].shape[1])
            rows = ctc.decode(out["logits"], lengths, self.config.pad, self.beams)
        else:
            heard, most = list(self.heard(x).to(device)), self.config.length - 1
            rows = beam_search(model, heard, self.beams, most=most)[0] if self.beams else generate(model, heard, most=most)
        return [self.tokenizer.decode(r).strip() for r in rows]

    def show(self, model, run):
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 8)][:8]
        return self.told(model, run, items, "heard")
