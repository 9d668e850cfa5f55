"""Small stand-ins, made here, for the files that the README and the recipes name, and for published data sets.

Each is what its name says: `*.csv` a series with a column of times, `photos/` a folder with a folder a class.
"""

import datetime
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

SUBJECTS = ("a small dog", "the old farmer", "one red train", "my sister", "a boy in blue", "two grey birds")
VERBS = ("sees", "carries", "paints", "follows", "finds", "remembers")
OBJECTS = ("a bridge", "the river", "green apples", "a wooden boat", "the letter", "some music")


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sentences(count: int, seed: int = 0) -> list[str]:
    r = draw(seed)
    return [f"{r.choice(SUBJECTS)} {r.choice(VERBS)} {r.choice(OBJECTS)} {i % 90}." for i in range(count)]


def text() -> bytes:
    return "\n".join(sentences(3000)).encode()


def picture(seed: int = 0, size: int = 40) -> bytes:
    """A PNG of one colour with a bar whose place depends on the seed."""
    from PIL import Image

    pixels = np.full((size, size, 3), draw(seed % 7).integers(60, 250, 3), np.uint8)
    pixels[seed % size : seed % size + 5] = 20
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sound(seed: int = 0, kind: str = "WAV", seconds: float = 0.4, rate: int = 16000) -> bytes:
    """A tone with noise."""
    import soundfile

    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 60 * (seed % 12)) * time) + draw(seed).normal(0, 0.01, len(time))
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind)
    return out.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


def classes() -> dict[str, bytes]:
    return {f"{('cats', 'dogs', 'owls')[i % 3]}/{i:03}.png": picture(i) for i in range(90)}


def emoji() -> dict[str, bytes]:
    return {f"{i:05x}.png": picture(i) for i in range(120)}


def names() -> bytes:
    rows = [f"{file}\tU+{i:X}\t{s[:-1]}" for i, (file, s) in enumerate(zip(emoji(), sentences(len(emoji()))))]
    return "\n".join(["file\tcodepoints\tname", *rows]).encode()


def series(steps: int = 1500) -> bytes:
    """Hourly numbers: OT and sales swing with the day."""
    r, start, out = draw(), datetime.datetime(2016, 7, 1), ["date,wind,sales,OT"]
    for i in range(steps):
        swing, noise, wind = np.sin(2 * np.pi * i / 24), r.normal(), r.normal()
        when = start + datetime.timedelta(hours=i)
        out.append(f"{when},{wind:.3f},{20 + 5 * swing + noise:.3f},{9 + 3 * swing:.3f}")
    return "\n".join(out).encode()


def people() -> bytes:
    r, out = draw(), ["age,work,hours,income"]
    for i in range(400):
        age, hours = int(r.integers(18, 80)), int(r.integers(5, 60))
        work = "" if i % 17 == 0 else str(r.choice(("private", "state", "own")))
        out.append(f"{age},{work},{hours},{'>50K' if age + hours > 85 else '<=50K'}")
    return "\n".join(out).encode()


def items() -> bytes:
    """Lines `user item` in the order of time."""
    r = draw()
    return (
        "\n".join(f"user{u:02} B{int(r.integers(0, 400)):04}" for u in range(60) for _ in range(15)).encode()
        + b"\n"
        + "\n".join(f"all B{i:04}" for i in range(400)).encode()
    )


def pairs() -> bytes:
    return "\n".join(["source\ttarget", *(f"{s}\t{s.upper()}" for s in sentences(200))]).encode()


def summaries() -> bytes:
    rows = [{"text": " ".join(sentences(3, i)), "summary": sentences(1, i)[0]} for i in range(200)]
    return "\n".join(map(json.dumps, rows)).encode()


def choices() -> bytes:
    rows = [{"goal": s, "sol1": f"yes, {s}", "sol2": f"no, {s}", "label": i % 2} for i, s in enumerate(sentences(120))]
    return "\n".join(map(json.dumps, rows)).encode()


def books() -> bytes:
    return "\n".join(json.dumps({"text": " ".join(sentences(40, i))}) for i in range(60)).encode()


def questions() -> bytes:
    paragraphs = []
    for i in range(60):
        context = " ".join(sentences(4, i))
        answers = [{"answer_start": context.index(verb), "text": verb} for verb in VERBS if i % 5 and verb in context][:1]
        qa = {"id": str(i), "question": "what happens?", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": context, "qas": [qa]})
    return json.dumps({"data": [{"paragraphs": paragraphs}]}).encode()


def tagged() -> bytes:
    out = []
    for s in sentences(200):
        words = s.split()
        tags = ["B-thing" if i == 2 else "I-thing" if i == 3 else "O" for i in range(len(words))]
        out += [f"{w}\t{t}" for w, t in zip(words, tags)] + [""]
    return "\n".join(out).encode()


def reviews() -> bytes:
    return "\n".join(f"{s}\t{i % 2}" for i, s in enumerate(sentences(200))).encode()


def trajectories() -> bytes:
    """Of the sizes of Pendulum-v1."""
    r, out = draw(), io.BytesIO()
    ends = np.arange(1, 9) * 50
    states, actions = r.normal(size=(400, 3)), r.uniform(-2, 2, (400, 1))
    np.savez(out, states=states, actions=actions, rewards=-r.random(400), ends=ends)
    return out.getvalue()


def digits() -> bytes:
    said = [(digit, take) for digit in range(10) for take in (0, 5, 8, 9)]
    return archive({f"free/recordings/{d}_ann_{n}.wav": sound(d, seconds=0.3, rate=8000) for d, n in said})


def idx(name: str) -> bytes:
    """MNIST's layout: 55,000 images to train, and 100 held out."""
    count = 100 if name.startswith("t10k") else 55_100
    if "labels" in name:
        labels = (np.arange(count) % 10).astype(np.uint8)
        return bytes((0, 0, 8, 1)) + count.to_bytes(4, "big") + labels.tobytes()
    kinds = draw().integers(0, 255, (10, 28 * 28)).astype(np.uint8)
    head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
    return head + kinds[np.arange(count) % 10].tobytes()


# The first pattern that fits a name, or one of its folders, says what it holds.
MAKERS: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("recordings.zip", digits),
    ("noto*.zip", lambda: archive(emoji())),
    ("*.zip", lambda: archive(classes())),
    ("names.tsv", names),
    ("ner_*", tagged),
    ("cls_*", reviews),
    ("*.tsv", pairs),
    ("items.txt", items),
    ("adult.csv", people),
    ("other.csv", people),
    ("*.csv", series),
    ("piqa.jsonl", choices),
    ("summaries.jsonl", summaries),
    ("*.jsonl", books),
    ("squad.json", questions),
    ("*.npz", trajectories),
    ("*.png", picture),
    ("*.flac", lambda: sound(kind="FLAC", seconds=2.0, rate=44100)),
    ("*.mp3", lambda: sound(kind="MP3", seconds=2.0)),
    ("mt_*", text),
    ("*.txt", text),
)


def content(name: str) -> bytes | None:
    """What a file of this name (its `.gz` left aside) holds; None for a name of which nothing is known."""
    plain = name.removesuffix(".gz")
    if "-ubyte" in plain:
        return idx(plain.rpartition("/")[2])
    for pattern, make in MAKERS:
        if any(fnmatch(part, pattern) for part in plain.split("/")):
            return make()
    return None


def supply(path: Path, name: str = "") -> bool:
    """Writes a stand-in at `path`, where nothing is there yet; False for a name of which nothing is known."""
    if path.exists():
        return True
    if str(name or path).endswith("/"):
        for file, made in classes().items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(made)
        return True
    made = content(name or path.name)
    if made is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(made, 1) if path.suffix == ".gz" else made)
    return True


def published(root: Path) -> Path:
    """A folder, as QKV_DATA names one, with every file of every published data set. Raises KeyError for a new kind."""
    from qkv.data import registry

    for known in registry.PUBLISHED.values():
        for file in known.files.values():
            if not supply(root / file.path, file.path):
                raise KeyError(f"tests/standins.py knows nothing like {file.path}")
    return root
