"""Data sets by name: embedded ones, generated tasks, and published ones fetched by URL and checked by hash."""

import gzip
import hashlib
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import tasks
from .shards import cache_folder
from .text import DataError


@dataclass(frozen=True)
class File:
    """A file of a published set. path: below $QKV_DATA or the cache (`.gz` is opened on reading). sha256: of its content unzipped; of an
    archive whose `members` end so, of the hashes of these in the order of their names, however they are packed."""

    path: str
    url: str
    sha256: str
    members: str = ""


@dataclass(frozen=True)
class Published:
    """files: {part: File}. kind: text or examples (parts are splits), pairs (parts are split.language), images or sounds (parts are files)."""

    about: str
    kind: str
    licence: str
    files: dict


_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
_MULTI30K_HASHES = {
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    "test_2017_mscoco.de": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
    "test_2017_mscoco.en": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
    "test_2017_mscoco.fr": "39cde3f43f32b0a6bf29ce4917a46329ff32e53070c2fac87506695a740ae0a0",
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.fr": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.fr": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
}
PUBLISHED = {
    "tinyshakespeare": Published(
        "Tiny Shakespeare, 1.1 M characters; the first 90 % train, the rest is held out",
        "text",
        "public domain",
        {
            "train": File(
                "lm_tinyshakespeare/input.txt.gz",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            )
        },
    ),
    "multi30k": Published(
        "Multi30k task 1, captions in English, German and French: 29,000 pairs to train, 1,014 held out, 1,000 test",
        "pairs",
        "for research",
        {part: File(f"mt_multi30k/{part}.gz", f"{_MULTI30K}{part}.gz", digest) for part, digest in _MULTI30K_HASHES.items()},
    ),
    "sst2": Published(
        "Stanford Sentiment Treebank, whole sentences, 0 or 1: 6,920 to train, 872 held out, 1,821 test (task=classification)",
        "examples",
        "not stated",
        {
            "train": File(
                "cls_sst2/train.tsv.gz",
                "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2/train.tsv",
                "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
            ),
            "valid": File(
                "cls_sst2/dev.tsv",
                "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2/dev.tsv",
                "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
            ),
            "test": File(
                "cls_sst2/test.tsv",
                "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2/test.tsv",
                "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
            ),
        },
    ),
    "wnut17": Published(
        "WNUT-17, entities of tweets, 6 types: 3,394 sentences to train, 1,009 held out, 1,287 test (task=tagging)",
        "examples",
        "CC BY 4.0",
        {
            "train": File(
                "ner_wnut17/train.conll.gz",
                "https://raw.githubusercontent.com/leondz/emerging_entities_17/master/wnut17train.conll",
                "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
            ),
            "valid": File(
                "ner_wnut17/dev.conll.gz",
                "https://raw.githubusercontent.com/leondz/emerging_entities_17/master/emerging.dev.conll",
                "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
            ),
            "test": File(
                "ner_wnut17/test.conll.gz",
                "https://raw.githubusercontent.com/leondz/emerging_entities_17/master/emerging.test.annotated",
                "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
            ),
        },
    ),
    "ncbi-disease": Published(
        "NCBI disease, names of diseases in PubMed abstracts: 5,424 sentences to train, 923 held out, 940 test (task=tagging)",
        "examples",
        "CC BY 4.0",
        {
            "train": File(
                "ner_ncbi_disease/train.tsv.gz",
                "https://raw.githubusercontent.com/cambridgeltl/MTL-Bioinformatics-2016/master/data/NCBI-disease-IOB/train.tsv",
                "58379baf4614b8d757d93dd7a21b202849ca99f9b9d71b49185523ff5443300c",
            ),
            "valid": File(
                "ner_ncbi_disease/dev.tsv.gz",
                "https://raw.githubusercontent.com/cambridgeltl/MTL-Bioinformatics-2016/master/data/NCBI-disease-IOB/devel.tsv",
                "b4e1e7efcc2a35047bf2f3d281648357470e674f555d4a26a0049ac37d59cc61",
            ),
            "test": File(
                "ner_ncbi_disease/test.tsv.gz",
                "https://raw.githubusercontent.com/cambridgeltl/MTL-Bioinformatics-2016/master/data/NCBI-disease-IOB/test.tsv",
                "8f088ce45dc4746592188f9e69de3d89d87f3bb8f0ed8c4a287d018123fa148d",
            ),
        },
    ),
}


_MNIST = {
    "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
PUBLISHED["mnist"] = Published(
    "MNIST, handwritten digits of 28 x 28 pixels: 55,000 to train, 5,000 held out, 10,000 test (task=images)",
    "images",
    "not stated",
    {n: File(f"image_mnist/{n}-ubyte.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{n}-ubyte.gz", h) for n, h in _MNIST.items()},
)
PUBLISHED["fsdd"] = Published(
    "Free Spoken Digit Dataset, 6 speakers saying zero to nine: 2,520 recordings to train, 180 held out, 300 test (task=transcribe)",
    "sounds",
    "CC BY-SA 4.0",
    {
        "recordings": File(
            "speech_fsdd/recordings.zip",
            "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",
            "fed1719db188f40ffb81efe9ff170e5885c96777271e86e7900d0754c5993cff",
            ".wav",
        )
    },
)


def embedded_reference():
    """Python's own reference manual, as it ships with every Python: [(topic, text)]."""
    from pydoc_data.topics import topics

    return sorted(topics.items())


def names():
    """{name: what it is} of all sets."""
    out = {"pydoc": "Python's reference manual, embedded in every Python (0.7 MB of text)"}
    out |= {f"task:{n}": f"generated pairs: {n}" for n in tasks.TASKS}
    out["digits"] = "1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn (task=images)"
    out["dial"] = "generated sounds: the tones of telephone numbers (task=transcribe)"
    return out | {n: p.about for n, p in PUBLISHED.items()}


def fetch(name, part):
    """The local path of one part of a published set: below $QKV_DATA, or the cache, or fetched now (resuming what is there).

    Raises DataError with what to do when there is no network, and when the content is not the published one.
    """
    file = PUBLISHED[name].files.get(part)
    if file is None:
        raise DataError(f"data set {name} has no part '{part}', it has {', '.join(PUBLISHED[name].files)}")
    for root in (os.environ.get("QKV_DATA"), cache_folder() / "data"):
        if root and (path := Path(root) / file.path).exists():
            return path
    target = cache_folder() / "data" / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        _download(file.url, partial)
    except (urllib.error.URLError, OSError) as e:
        raise DataError(
            f"data set {name} is not here and {file.url} cannot be reached ({e}). Download that file elsewhere and put it at {target}, "
            f"or point QKV_DATA at a folder that holds {file.path}"
        ) from None
    found = digest(partial, file)
    if found != file.sha256:
        partial.unlink()
        raise DataError(
            f"{file.url} did not give the published file: its SHA-256 is {found}, not {file.sha256}. Nothing was kept; try again"
        )
    if target.suffix == ".gz" and partial.read_bytes()[:2] != b"\x1f\x8b":
        partial.write_bytes(gzip.compress(partial.read_bytes(), mtime=0))
    partial.rename(target)
    return target


def digest(path, file):
    """The SHA-256 of a file's content, as a File gives it."""
    content = path.read_bytes()
    if file.members:
        content = packed(path, file.members)
    elif content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return hashlib.sha256(content).hexdigest()


def packed(path, suffix):
    """The hashes of the members of a zip that end so, one after another. b"" where it is no zip."""
    try:
        with zipfile.ZipFile(path) as z:
            names = sorted((n for n in z.namelist() if n.endswith(suffix)), key=lambda n: n.rsplit("/", 1)[-1])
            return b"".join(hashlib.sha256(z.read(n)).digest() for n in names)
    except zipfile.BadZipFile:
        return b""


def _download(url, partial):
    """Fetches url into a file, going on where an earlier try stopped."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "qkv", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer, open(partial, "ab" if answer.status == 206 else "wb") as f:
            before = f.tell()
            shutil.copyfileobj(answer, f)
            promised = answer.headers.get("Content-Length")
            if promised and f.tell() - before < int(promised):
                raise OSError(f"the connection closed after {f.tell()} bytes; try again to go on from there")
    except urllib.error.HTTPError as e:
        if e.code != 416:  # 416: nothing is left to fetch
            raise
