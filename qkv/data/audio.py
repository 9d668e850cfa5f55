"""Sounds in, and what models read of them: logarithmic mel spectra (Whisper, Radford et al., 2022, section 2.2).

Dims: S samples, F frames (one every 10 ms), M mel bands.
"""

import functools
import io
from pathlib import Path

import numpy as np
import torch

from . import media, registry
from .batches import rng
from .text import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
RATE, WINDOW, HOP = 16000, 400, 160  # samples a second, of a spectrum, between two
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read(cfg, source, part):
    """[Example(text: what `samples` decodes, label: its transcript or None)] of a published set, a table of files with their texts, a
    folder, a zip or tar, or one file. A file's transcript is that of the .txt beside it, else its folder's name, else its own name up to
    the first underscore. Raises DataError."""
    if source == "dial":
        return dial(part)
    if source in registry.PUBLISHED:
        return spoken_digits(registry.fetch(source, "recordings"), part)
    path = Path(str(source)).expanduser()
    if not path.exists():
        raise DataError(f"data.source={source} is no file or folder here, and no data set of sounds (dial, fsdd)")
    if media.is_table(path):
        found = media.table(cfg, path, part, SUFFIXES)
    elif path.suffix.lower() in SUFFIXES:
        found = [media.Example(path, label=_transcript(path, path.parent), where=str(path))]
    else:
        found = media.labelled(path, SUFFIXES, lambda name: _transcript(name, path))
    if found is None:
        raise DataError(f"{path} is no sound, table, folder, zip or tar of sounds; sounds end in {', '.join(SUFFIXES)}")
    if not found:
        raise DataError(f"{path} holds no sounds ({', '.join(SUFFIXES)})")
    return found


def _transcript(name, root):
    beside = (root / name).with_suffix(".txt")
    if root.is_dir() and beside.exists():
        return beside.read_text(encoding="utf-8").strip()
    if name.parent != Path(".") and root != name.parent and root.is_dir():
        return name.parent.name
    return name.stem.partition("_")[0] if "_" in name.stem else None


def spoken_digits(path, part):
    """The Free Spoken Digit Dataset: recordings 0 to 4 of each speaker and digit are its test part, 5 to 7 are held out here."""
    wanted = {"test": range(5), "valid": range(5, 8), "train": range(8, 50)}
    if part not in wanted:
        raise DataError(f"data set fsdd has no part '{part}'; it has {', '.join(wanted)}")
    found = media.labelled(path, (".wav",), lambda name: DIGITS[int(name.stem[0])] if name.stem[0].isdigit() else None)
    return [e for e in found or () if e.label and int(Path(e.where).stem.rsplit("_", 1)[1]) in wanted[part]]


KEYS = {k: (low, high) for low, row in zip((697, 770, 852, 941), ("123", "456", "789", "*0#")) for high, k in zip((1209, 1336, 1477), row)}


def dial(part, count=2000):
    """Generated: telephone numbers of one to six keys, each a pair of tones (DTMF, ITU-T Q.23), with pauses and noise."""
    r, out = rng({"train": 1, "valid": 2}.get(part, 3), 5), []
    for i in range(count if part == "train" else 100):
        said, wave = "", []
        for _ in range(int(r.integers(1, 7))):
            key = "0123456789*#"[int(r.integers(0, 12))]
            t = np.arange(int(r.integers(960, 1920))) / RATE
            tone = sum(np.sin(2 * np.pi * (f * r.uniform(0.985, 1.015) * t + r.random())) for f in KEYS[key])
            wave += [tone * r.uniform(0.1, 0.4), np.zeros(int(r.integers(480, 1280)))]
            said += key
        wave = np.concatenate(wave) + r.normal(0, r.uniform(0.001, 0.05), sum(map(len, wave)))
        out.append(media.Example(wave.astype(np.float32), label=said, where=f"dial, {part} {i + 1}"))
    return out


def samples(sound, where="the sound"):
    """(S,) float32 at 16 kHz, one channel, of a file, its bytes, or an array at 16 kHz. Raises DataError for what is no sound, or empty."""
    import soundfile

    if isinstance(sound, (np.ndarray, torch.Tensor)):
        wave, rate = np.asarray(sound, dtype=np.float32), RATE
    else:
        try:
            wave, rate = soundfile.read(sound if isinstance(sound, Path) else io.BytesIO(sound), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as e:
            raise DataError(f"{where}: cannot be read as a sound ({str(e).splitlines()[-1][:100]})") from None
        wave = wave.mean(1)
    if wave.ndim != 1 or not len(wave):
        raise DataError(f"{where}: holds no sound (its shape is {wave.shape})")
    if not np.isfinite(wave).all():
        raise DataError(f"{where}: holds samples that are not numbers")
    if rate != RATE:
        import soxr

        wave = soxr.resample(wave, rate, RATE)
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))


@functools.cache
def filters(mels, rate=RATE, window=WINDOW):
    """(M, window / 2 + 1) triangles of equal area, evenly spaced on Slaney's mel scale: linear to 1 kHz, logarithmic above."""
    high = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, high, mels + 2)
    edge = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    f = np.linspace(0, rate / 2, window // 2 + 1)
    rise = (f - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    fall = (edge[2:, None] - f) / (edge[2:] - edge[1:-1])[:, None]
    area = 2 / (edge[2:] - edge[:-2])
    return torch.from_numpy(np.maximum(0, np.minimum(rise, fall)) * area[:, None]).float()


def log_mel(wave_S, mels=80, frames=None):
    """(F, M) from about -1 to 1.5; frames: silence is put behind a shorter sound, and a longer one is cut. Raises DataError for no samples."""
    if not len(wave_S):
        raise DataError("a sound without samples has no spectrum")
    want = frames * HOP if frames else max(len(wave_S), WINDOW)
    wave = torch.nn.functional.pad(wave_S[:want], (0, max(0, want - len(wave_S))))
    power = torch.stft(wave, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)[:, :-1].abs().square()
    log = (filters(mels) @ power).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.max() - 8)
    return ((log + 4) / 4).T.contiguous()
