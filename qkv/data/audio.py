"""Sounds in, and what models read of them: logarithmic mel spectra (Whisper, 2022, section 2.2).

Dims: S samples, F frames (one every 10 ms), M mel bands.
"""

import contextlib
import functools
import io
import re
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from . import media, registry
from .batches import rng
from .examples import Example
from .text import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf")
RATE, WINDOW, HOP = 16000, 400, 160  # samples a second, of a spectrum, between two
RATES = (1000, 768_000)  # of a file, lowest and highest
SAMPLES = 1_000_000_000  # of one sound, of all its channels, at most: four gigabytes
CHANNELS = 8  # of an array, at most
LOUDEST = 32  # times full scale: samples beyond are integers that were never divided
FRAME, LONGEST = 1152, 1441  # samples and bytes of a frame of MP3, at most; lengths are known to a frame
OPEN = 0x7FFF0000  # bytes: sizes from here on stand for "not known" in what was written to a pipe
CUT = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's log
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read(cfg, source, part: str) -> list[Example]:
    """[Example(text: what `samples` decodes, label: its transcript or None)].

    source: a published set, a table of files with their texts, a folder, a zip or tar, or one file. A file's
    transcript is that of the .txt beside it, else the name of its folder (in an archive,
    of one below the folder that holds all), else its own name up to the first underscore. Raises DataError.
    """
    if source == "dial":
        return dial(part)
    if source in registry.PUBLISHED:
        return spoken_digits(registry.fetch(source, "recordings"), part)
    others = lambda path: transcribed(path, cfg.errors)
    return media.read(cfg, source, part, SUFFIXES, "sounds", "dial, fsdd", others)


def transcribed(path: Path, errors: str = "strict") -> list[Example] | None:
    """[Example] of a file, folder or archive of sounds, with transcripts; None where it is none of these."""
    packed = path.is_file() and path.suffix.lower() not in SUFFIXES
    found = media.files(path, (*SUFFIXES, ".txt"))
    if found is None:
        return None
    beside = path.with_suffix(".txt")
    if path.is_file() and not packed and beside.is_file():
        found[PurePosixPath(beside.name)] = beside
    sounds = {n: f for n, f in found.items() if n.suffix.lower() != ".txt"}
    texts = {n.with_suffix(""): n for n in found if n not in sounds}
    outer = {n.parts[0] if len(n.parts) > 1 else "" for n in sounds}
    first = 1 if packed and len(outer) == 1 else 0  # of the folders that tell sounds apart
    out = []
    for n, f in sounds.items():
        label = None
        if text := texts.get(n.with_suffix("")):
            label = _text(found[text], media.where(path, text, found[text]), errors)
        elif folders := n.parts[first:-1]:
            label = folders[-1]
        elif "_" in n.stem:
            label = n.stem.partition("_")[0]
        out.append(Example(f, label=label, where=media.where(path, n, f)))
    return out


def _text(file: Path | bytes, where: str, errors: str) -> str:
    raw = file.read_bytes() if isinstance(file, Path) else file
    try:
        return raw.decode("utf-8-sig", errors).strip()
    except UnicodeDecodeError as e:
        at = f"byte 0x{raw[e.start]:02x} at offset {e.start}"
        raise DataError(f"{where} is not UTF-8: {at}. Convert it, or pass data.errors=replace") from None


def spoken_digits(path: Path, part: str) -> list[Example]:
    """The Free Spoken Digit Dataset: recordings 0 to 4 of each speaker and digit are its test part, 5 to 7
    are held out here."""
    wanted = {"test": range(5), "valid": range(5, 8), "train": range(8, 50)}
    if part not in wanted:
        raise DataError(f"data set fsdd has no part '{part}'; it has {', '.join(wanted)}")
    digit = lambda name: DIGITS[int(name.stem[0])] if name.stem[0].isdigit() else None
    found = media.labelled(path, (".wav",), digit)
    return [e for e in found or () if e.label and int(Path(e.where).stem.rsplit("_", 1)[1]) in wanted[part]]


LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
KEYS = {k: (low, high) for low, row in zip(LOW, ("123", "456", "789", "*0#")) for high, k in zip(HIGH, row)}


def dial(part: str, count: int = 2000) -> list[Example]:
    """Generated: telephone numbers of one to six keys, each a pair of tones (DTMF, ITU-T Q.23), with pauses,
    in noise."""
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
        out.append(Example(wave.astype(np.float32), label=said, where=f"dial, {part} {i + 1}"))
    return out


def samples(sound: str | Path | bytes | np.ndarray | torch.Tensor, where: str = "the sound") -> torch.Tensor:
    """(S,) float32 at 16 kHz, of one channel, of a file, its bytes or an array.

    - What is in a file counts, not its suffix: WAV, FLAC, Ogg, MP3, AIFF, AU, CAF, all that libsndfile knows.
    - Integers are divided by the full scale of their depth, in files and in arrays alike: int16 by 32768; of
      uint8, 128 is silence. Floats are taken as they are, also those somewhat beyond full scale, which is 1.
    - Channels are averaged. Arrays are at 16 kHz, and (S,), (1, S), or (S, C) with C up to 8. (C, S) is
      refused: it may as well be C sounds.
    - Other rates are resampled (soxr); what lies above 8 kHz is left out, not folded down.

    Raises DataError, by the name `where`, for what is empty, damaged, cut off, no sound, over SAMPLES or
    beyond RATES; for samples that are NaN or infinite; and for some over LOUDEST: integers that were not
    divided.
    """
    if isinstance(sound, (np.ndarray, torch.Tensor)):
        wave_SC, rate = _scaled(sound, where), RATE
    else:
        wave_SC, rate = _decoded(sound, where)
    if not len(wave_SC):
        raise DataError(f"{where}: holds no sound: there are 0 samples in it")
    wrong = ~np.isfinite(wave_SC).all(1)
    if wrong.any():
        at = wrong.argmax() / rate
        raise DataError(f"{where}: holds samples that are not numbers, or infinite, the first at {at:.3f} s")
    peak = float(np.abs(wave_SC).max())
    if peak > LOUDEST:
        divide = "divide them by that of their depth (of 16 bits 32768)"
        raise DataError(f"{where}: its samples reach {peak:,.0f}, and full scale is 1; {divide}")
    wave = wave_SC.mean(1)
    if rate != RATE:
        import soxr

        wave = soxr.resample(wave, rate, RATE)
    if not len(wave):
        raise DataError(f"{where}: is too short: {len(wave_SC)} samples at {rate:,} Hz are not one at 16 kHz")
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))


def _scaled(x, where: str) -> np.ndarray:
    """(S, C) float32 of an array."""
    if isinstance(x, torch.Tensor):
        x = (x.float() if x.is_floating_point() else x).detach().cpu().numpy()
    if x.dtype == np.uint8:
        x = (x.astype(np.float32) - 128) / 128
    elif x.dtype.kind == "i" and x.dtype.itemsize <= 4:
        x = x / 2.0 ** (8 * x.dtype.itemsize - 1)
    elif x.dtype.kind != "f":
        known = "floats, int16, int32, int8 or uint8"
        raise DataError(f"{where}: the full scale of {x.dtype} is not known; give {known}")
    shape = x.shape
    x = x[:, None] if x.ndim == 1 else x.T if x.ndim == 2 and len(x) == 1 else x
    if x.ndim != 2 or x.shape[1] > CHANNELS or 1 < x.shape[1] >= len(x):
        may = f"(samples,), (1, samples) or (samples, up to {CHANNELS} channels)"
        give = "of (channels, samples) give x.T, of a batch one row"
        raise DataError(f"{where}: an array is {may}, not {tuple(shape)}; {give}")
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _decoded(sound: str | Path | bytes, where: str) -> tuple[np.ndarray, int]:
    """((S, C) float32, rate) of a file or its bytes."""
    import soundfile

    try:
        raw = sound if isinstance(sound, bytes) else Path(sound).read_bytes()
        if not raw:
            raise ValueError("it is empty: 0 bytes")
        with _Bytes(raw) as file, soundfile.SoundFile(file) as f:
            if f.frames * f.channels > SAMPLES:
                many = f"{f.frames:,} samples of {f.channels} channels"
                raise ValueError(f"it says that it holds {many}, over {SAMPLES:,} in all; cut it into parts")
            if not RATES[0] <= f.samplerate <= RATES[1]:
                low, high = RATES
                raise ValueError(f"its rate is {f.samplerate:,} Hz; {low:,} to {high:,} Hz are read")
            wave = f.read(dtype="float32", always_2d=True)
            _whole(f, len(wave), raw, file.tell())
            return wave, f.samplerate
    except soundfile.LibsndfileError as e:
        reason = e.error_string
    except OSError as e:
        reason = e.strerror or str(e)
    except Exception as e:  # on damaged bytes a decoder raises whatever it stumbles over
        reason = str(e) or type(e).__name__
    raise DataError(f"{where}: cannot be read as a sound ({reason.splitlines()[-1][:200]})")


def _whole(f, read: int, raw: bytes, end: int) -> None:
    """Raises ValueError where libsndfile took less than there is (up to `end`), or than a header says there
    is: it tells neither. Where an MP3 has no header, of which its first frame would bear the name, libsndfile
    guesses the length by that frame's size."""
    mp3, rest = f.format == "MP3", raw[end:]
    first = 10 + sum(b << s for b, s in zip(raw[6:10], (21, 14, 7, 0))) if raw[:3] == b"ID3" else 0
    guessed = mp3 and not any(name in raw[first : first + 64] for name in (b"Xing", b"Info", b"VBRI"))
    if read < f.frames - (FRAME if mp3 else 0) and not guessed:
        raise ValueError(f"it is cut off: it says it holds {f.frames:,} samples, and {read:,} can be read")
    for said, there in CUT.findall(f.extra_info):
        if int(there) < int(said) < OPEN:
            raise ValueError(f"it is cut off: it says it holds {said} bytes of sound, and {there} are there")
    if mp3 and len(rest) > LONGEST and rest[0] == 0xFF and rest[1] >= 0xE0:
        raise ValueError(f"{len(rest):,} bytes of sound lie behind the length it says it has; save it anew")


class _Bytes(io.BytesIO):
    """Bytes that stay where they are when libsndfile, led by a damaged header, seeks beyond their start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        with contextlib.suppress(ValueError):
            super().seek(offset, whence)
        return self.tell()


@functools.cache
def filters(mels: int, rate: int = RATE, window: int = WINDOW) -> torch.Tensor:
    """(M, window / 2 + 1) triangles of equal area, evenly spaced on Slaney's mel scale: linear to 1 kHz,
    logarithmic above."""
    high = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, high, mels + 2)
    edge = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    f = np.linspace(0, rate / 2, window // 2 + 1)
    rise = (f - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    fall = (edge[2:, None] - f) / (edge[2:] - edge[1:-1])[:, None]
    area = 2 / (edge[2:] - edge[:-2])
    return torch.from_numpy(np.maximum(0, np.minimum(rise, fall)) * area[:, None]).float()


def log_mel(wave_S: torch.Tensor, mels: int = 80, frames: int | None = None) -> torch.Tensor:
    """(F, M) from about -1 to 1.5; frames: silence is put behind a shorter sound, and a longer one is cut.
    Raises DataError for no samples."""
    if not len(wave_S):
        raise DataError("a sound without samples has no spectrum")
    want = frames * HOP if frames else max(len(wave_S), WINDOW)
    wave = torch.nn.functional.pad(wave_S[:want], (0, max(0, want - len(wave_S))))
    spectrum = torch.stft(wave, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    power = spectrum[:, :-1].abs().square()
    log = (filters(mels) @ power).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.max() - 8)
    return ((log + 4) / 4).T.contiguous()
