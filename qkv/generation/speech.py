"""Sound to text: long sounds window by window, with times (Whisper, Radford et al., 2022, sections 2.3 and 4.5).

Dims: S samples, F frames, M features, V vocabulary, H heads, L tokens, T vectors of a sound.
"""

import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import interpret
from ..data import audio
from . import ctc
from .decoding import decoding, writing
from .sampling import ends

SECOND = audio.RATE // audio.HOP  # frames
STEP = 0.02  # seconds between two timestamps of the published vocabulary
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass
class Segment:
    """What was said between two times, in seconds. words: [(word, start, end)] where they were asked for. score: mean log probability of
    its tokens."""

    start: float
    end: float
    text: str
    score: float = 0.0
    words: list = field(default_factory=list)


class Protocol:
    """The special tokens of a published Whisper vocabulary: languages, tasks, timestamps."""

    def __init__(self, tokenizer):
        known = {tokenizer.token(i): i for i in range(len(tokenizer)) if re.fullmatch(r"<\|.*\|>", tokenizer.token(i) or "")}
        self.known, self.first = known, known["<|0.00|>"]
        self.languages = {n[2:-2]: i for n, i in known.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", n)}
        self.silence = known.get("<|nospeech|>", known.get("<|nocaptions|>"))
        self.special = sorted(set(known.values()) - set(range(self.first, self.first + 1501)))

    @staticmethod
    def of(tokenizer):
        """The protocol of a tokenizer, or None where it has none."""
        has = tokenizer.engine.token_to_id
        return Protocol(tokenizer) if has("<|0.00|>") is not None and has("<|transcribe|>") is not None else None

    def prefix(self, language, task, times):
        if task not in ("transcribe", "translate"):
            raise ValueError(f"task={task!r}: must be transcribe or translate")
        if self.languages and language not in self.languages:
            raise ValueError(f"language={language!r} is not one of {', '.join(sorted(self.languages))}")
        out = [self.known["<|startoftranscript|>"], *([self.languages[language], self.known[f"<|{task}|>"]] if self.languages else [])]
        return out if times else [*out, self.known["<|notimestamps|>"]]

    def allow(self, log_V, said, eos):
        """Log probabilities with the rules of timestamps (section 2.3): they come in pairs but before the end, never go back, and the first token is
        one within the first second; where all of them together are likelier than any word, one of them it is."""
        log, first = log_V.clone(), self.first
        log[[i for i in self.special if i != eos]] = -torch.inf
        at = lambda i: len(said) > -i - 1 and said[i] >= first
        if not said:
            log[:first] = -torch.inf
            log[first + int(1 / STEP) + 1 :] = -torch.inf
        elif at(-1):
            if len(said) < 2 or at(-2):
                log[first:] = -torch.inf  # after a pair, words
            else:
                log[[i for i in range(first) if i != eos]] = -torch.inf  # a segment has ended: its second, or the end
        if times := [t for t in said if t >= first]:
            last = times[-1] if at(-1) and not (len(said) < 2 or at(-2)) else times[-1] + 1
            log[first:last] = -torch.inf
        log = log.log_softmax(-1)
        if log[first:].logsumexp(-1) > log[:first].max():
            log[:first] = -torch.inf
        return log


def window(model, wave_S, start):
    """(1, M, F) frames of the window that begins at sample `start`."""
    frames = model.window
    return (
        audio.log_mel(wave_S[start : start + frames * audio.HOP], model.config.features, frames).T[None].to(next(model.parameters()).device)
    )


@torch.inference_mode()
def write(model, frames_1MF, prefix, *, temperature=0.0, rules=None, most=None, seed=0):
    """(ids, mean log probability) of one window. rules: (log probabilities, ids so far) -> log probabilities."""
    state = decoding(model, list(frames_1MF), prefixes=[prefix])
    generator = torch.Generator(state.ids.device).manual_seed(seed)
    end, said, total = ends(model), [], 0.0
    for _ in range(min(most or model.config.length, model.config.length - len(prefix))):
        log = state.logits[0].float().log_softmax(-1)
        if rules is not None:
            log = rules(log, said)
        token = int(log.argmax()) if temperature == 0 else int(torch.multinomial((log / temperature).softmax(-1), 1, generator=generator))
        total += float(log[token])
        if token in end:
            break
        said.append(token)
        if state.spent()[0]:
            break
        state.push(torch.tensor([token], device=state.ids.device))
    return said, total / (len(said) + 1)


def repeats(text):
    """How much smaller the text gets by zlib: over 2.4 it goes round in circles."""
    raw = text.encode()
    return len(raw) / max(1, len(zlib.compress(raw)))


def transcribe(model, tokenizer, sound, *, language=None, task="transcribe", words=False, beams=0, progress=lambda x: x):
    """[Segment] of a sound: a file, its bytes, or samples (S,) at 16 kHz. language: of a published multilingual model, heard where it
    is not given. words: with the times of words. beams: of a model with CTC."""
    wave = audio.samples(sound, str(sound) if isinstance(sound, (str, Path)) else "the sound")
    if not hasattr(model, "encode"):
        return _ctc(model, tokenizer, wave, beams, words)
    if model.config.output != "lm":
        raise ValueError(f"the model has output={model.config.output}; writing needs output=lm")
    protocol = Protocol.of(tokenizer)
    with writing(model):
        if protocol is None:
            return _plain(model, tokenizer, wave, words, progress)
        return _long(model, tokenizer, wave, protocol, language, task, words, progress)


def _ctc(model, tokenizer, wave, beams, words):
    cfg = model.config
    device = next(model.parameters()).device
    given = wave[None] if model.front.samples else audio.log_mel(wave, cfg.features)[None]
    with torch.inference_mode():
        logits = model(input_features=given.to(device))["logits"]
    ids = ctc.decode(logits, [logits.shape[1]], cfg.pad, beams)[0]
    seconds = len(wave) / audio.RATE
    out = Segment(0.0, seconds, tokenizer.decode(ids).strip())
    out.score = float(logits[0].float().log_softmax(-1).amax(-1).mean())
    if words:
        path = logits[0].argmax(-1).tolist()
        first = [t for t, i in enumerate(path) if i != cfg.pad and (t == 0 or path[t - 1] != i)]
        per = seconds / len(path)
        out.words = _words(tokenizer, [path[t] for t in first], [t * per for t in [*first, len(path)]])
    return [out]


def _plain(model, tokenizer, wave, words, progress):
    """A vocabulary without times: windows one after another."""
    out, size, start = [], model.window * audio.HOP, model.config.start
    for at in progress(range(0, len(wave), size)):
        frames = window(model, wave, at)
        ids, score = write(model, frames, [start])
        seconds = at / audio.RATE, min(at + size, len(wave)) / audio.RATE
        said = Segment(*seconds, tokenizer.decode(ids).strip(), score)
        if words and ids:
            said.words = aligned(model, tokenizer, frames, [start], ids, (0.0, seconds[1] - seconds[0]), seconds[0])
        out.append(said)
    return out


def hear_language(model, frames_1MF, protocol):
    """{language: probability}, and the probability that nobody speaks."""
    start = torch.tensor([[protocol.known["<|startoftranscript|>"]]], device=frames_1MF.device)
    p = model(input_features=frames_1MF, decoder_input_ids=start)["logits"][0, -1].float()
    ids = list(protocol.languages.values())
    silent = float(p.softmax(-1)[protocol.silence]) if protocol.silence is not None else 0.0
    return dict(zip(protocol.languages, p[ids].softmax(-1).tolist())), silent


def _long(model, tokenizer, wave, protocol, language, task, words, progress):
    """Windows that begin where the last whole segment of the one before ended; where the text goes round in circles or is unlikely, it is
    written again at a higher temperature; a window where nobody speaks is passed over (section 4.5)."""
    out, at, eos = [], 0, model.config.eos
    size = model.window * audio.HOP
    bar = iter(progress(range(max(1, -(-len(wave) // size)))))
    rules = lambda log, said: protocol.allow(log, said, eos)
    while at < len(wave):
        frames = window(model, wave, at)
        heard, silent = hear_language(model, frames, protocol)
        if language is None and protocol.languages:
            language = max(heard, key=heard.get)
        prefix = protocol.prefix(language, task, True)
        for temperature in TEMPERATURES:
            ids, score = write(model, frames, prefix, temperature=temperature, rules=rules, most=224, seed=len(out))
            text = tokenizer.decode([i for i in ids if i < protocol.first])
            if repeats(text) <= 2.4 and score >= -1:
                break
        here, whole = at / audio.RATE, min(size, len(wave) - at)
        if silent > 0.6 and score < -1:
            at += whole
            next(bar, None)
            continue
        parts, ended = _segments(ids, protocol.first, whole / audio.RATE)
        for start, end, tokens in parts:
            said = Segment(here + start, here + end, tokenizer.decode(tokens).strip(), score)
            if words and tokens:
                said.words = aligned(model, tokenizer, frames, prefix, tokens, (start, end), here)
            if said.text:
                out.append(said)
        at += int(ended * audio.RATE) if ended else whole
        next(bar, None)
    return out


def _segments(ids, first, seconds):
    """([(start, end, tokens)], seconds that are done with, 0 for all) of a window's ids."""
    parts, start, now, ended = [], 0.0, [], 0.0
    for n, i in enumerate(ids):
        if i < first:
            now.append(i)
            continue
        time = min((i - first) * STEP, seconds)
        if now:
            parts.append((start, time, now))
            now = []
            if n + 1 < len(ids) and ids[n + 1] >= first:
                ended = time  # a pair: the segment is whole
        start = time
    if now:
        parts.append((start, seconds, now))
        if len(parts) > 1 and ended:
            parts.pop()  # begun at the window's end: heard again in the next one
            return parts, ended
    return parts, ended if ids and ids[-1] >= first and len(ids) > 1 and ids[-2] >= first else 0.0


def looks(model, frames_1MF, ids):
    """(layers, H, L, T) weights of the cross-attention of every decoder layer, for the ids written."""
    written = torch.tensor([ids], device=frames_1MF.device)
    return interpret.weights(model, cross=True, input_features=frames_1MF, decoder_input_ids=written)[:, 0]


def attention(model, tokenizer, sound, text):
    """(tokens, mean weights (L, T) of the upper half of the layers, seconds of T): where in its first window the tokens of a text looked."""
    wave = audio.samples(sound, str(sound) if isinstance(sound, (str, Path)) else "the sound")
    protocol = Protocol.of(tokenizer)
    prefix = [model.config.start] if protocol is None else protocol.prefix(next(iter(protocol.languages), None), "transcribe", False)
    ids = tokenizer.encode(text)[: model.config.length - len(prefix) - 1]
    weights = looks(model, window(model, wave, 0), [*prefix, *ids])
    upper = weights[len(weights) // 2 :, :, len(prefix) - 1 : -1].flatten(0, 1).float().mean(0)
    return [tokenizer.decode([i]).strip() or "_" for i in ids], upper.cpu().numpy(), model.window / SECOND


def aligned(model, tokenizer, frames_1MF, prefix, ids, within, offset=0.0):
    """[(word, start, end)] of a segment: the cheapest monotonous path through the cross-attention of the upper half of the layers, smoothed over
    seven vectors (dynamic time warping; the published code's way). within: its start and end in the window, offset: the window's
    start, in seconds."""
    weights = looks(model, frames_1MF, [*prefix, *ids])
    weights = weights[len(weights) // 2 :, :, len(prefix) - 1 : -1].flatten(0, 1)  # what each token was written from
    per = model.window / model.config.frames / SECOND  # seconds of a vector
    first = min(int(within[0] / per), weights.shape[-1] - 1)
    last = min(max(first + 1, math.ceil(within[1] / per)), weights.shape[-1])
    w = weights[..., first:last].float()
    w = (w - w.mean(-2, keepdim=True)) / (w.std(-2, keepdim=True, unbiased=False) + 1e-6)
    w = torch.nn.functional.pad(w, (3, 3), mode="replicate").unfold(-1, 7, 1).median(-1).values.mean(0)
    return _words(tokenizer, ids, [offset + (first + t) * per for t in [*warp(-w), last - first]])


def warp(cost_LT):
    """The vector at which each row begins on the cheapest path from the first row and column to the last."""
    L, T = cost_LT.shape
    cost = cost_LT.tolist()
    total = [[float("inf")] * (T + 1) for _ in range(L + 1)]
    came = [[0] * (T + 1) for _ in range(L + 1)]
    total[0][0] = 0.0
    for i in range(1, L + 1):
        above, row = total[i - 1], total[i]
        for j in range(1, T + 1):
            best = min((above[j - 1], 0), (above[j], 1), (row[j - 1], 2))
            row[j], came[i][j] = cost[i - 1][j - 1] + best[0], best[1]
    i, j, first = L, T, [0] * L
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        step = came[i][j]
        i, j = i - (step != 2), j - (step != 1)
    return first


def _words(tokenizer, ids, times):
    """[(word, start, end)] of tokens that begin at `times`, with one more for the end."""
    out, text = [], ""
    for n in range(len(ids)):
        now = tokenizer.decode(ids[: n + 1])
        piece = now[len(text) :]
        if not piece or "�" in piece:
            continue
        text = now
        if not out or piece[0].isspace():
            out.append([piece.strip(), times[n], times[n + 1]])
        else:
            out[-1][0], out[-1][2] = out[-1][0] + piece.strip(), times[n + 1]
    return [(w, round(a, 2), round(b, 2)) for w, a, b in out if w]


__all__ = ["Protocol", "Segment", "aligned", "attention", "hear_language", "looks", "transcribe", "warp", "write"]
