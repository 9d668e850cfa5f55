"""Images in: scikit-learn's digits, IDX files, folders and archives with a folder a class."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np

from . import media, registry
from .examples import Example
from .text import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PIXELS = 50_000_000  # of one image, at most


def read(source, cfg=None, part="train"):
    """[Example(text: pixels, or what `pixels` decodes; label: its class or None; where)] of a source. Raises DataError."""
    path = Path(str(source)).expanduser()
    if source == "digits":
        return digits()
    if source == "mnist":
        return mnist(part)
    if not path.exists():
        raise DataError(f"data.source={source} is no file or folder here, and no data set of images (digits, mnist)")
    folder = lambda name: name.parent.name or None
    if "idx3" in path.name or "idx1" in path.name:
        found = idx(path)
    elif path.suffix.lower() in SUFFIXES:
        found = [Example(path, where=str(path))]
    elif cfg is not None and media.is_table(path):
        found = media.table(cfg, path, "train", SUFFIXES)
    else:
        found = media.labelled(path, SUFFIXES, folder)
    if found is None:
        raise DataError(f"{path} is no image, table, folder, zip, tar or IDX file of images; images end in {', '.join(SUFFIXES)}")
    if not found:
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return found


def mnist(part):
    """MNIST; the last 5,000 training images are held out."""
    if part not in ("train", "valid", "test"):
        raise DataError(f"data set mnist has no part '{part}'; it has train, valid, test")
    side = "t10k" if part == "test" else "train"
    registry.fetch("mnist", f"{side}-labels-idx1")
    found = idx(registry.fetch("mnist", f"{side}-images-idx3"))
    return {"train": found[:55000], "valid": found[55000:], "test": found}[part]


def digits():
    """1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = (x.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    return [Example(p, label=str(n), where=f"digits, row {i}") for i, (p, n) in enumerate(zip(pixels, y), 1)]


def idx(path):
    """An IDX file of images (LeCun's, of MNIST) with its labels beside it."""
    images = path.with_name(path.name.replace("labels", "images").replace("idx1", "idx3"))
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    x = array(images, 3)
    y = array(labels, 1) if labels.exists() and labels != images else [None] * len(x)
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x)} images and {labels} {len(y)} labels")
    return [
        Example(p[..., None], label=None if n is None else str(n), where=f"{images}, image {i}") for i, (p, n) in enumerate(zip(x, y), 1)
    ]


def array(path, dims):
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, count = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{count}I", raw[4 : 4 + 4 * count])
    except (OSError, EOFError, struct.error) as e:
        raise DataError(f"{path} is damaged: {e}") from None
    if zero or kind != 8 or count != dims:
        raise DataError(f"{path} is no IDX file of bytes in {dims} dimensions")
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * count)
    if len(values) != int(np.prod(shape)):
        raise DataError(f"{path} is cut off: it says {' x '.join(map(str, shape))} and holds {len(values)} bytes")
    return values.reshape(shape)


def pixels(example, size, channels):
    """(channels, size, size) uint8 of an example: decoded, alpha laid on white, grey or colour as asked, resized. Raises DataError."""
    from PIL import Image, UnidentifiedImageError

    given = example.text
    try:
        if isinstance(given, np.ndarray):
            image = Image.fromarray(given[..., 0] if given.shape[-1] == 1 else given)
        else:
            image = Image.open(given if isinstance(given, Path) else io.BytesIO(given))
            if image.width * image.height > PIXELS:
                raise DataError(f"{example.where}: has {image.width} x {image.height} pixels, over {PIXELS:,}; make it smaller")
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f"{example.where}: cannot be read as an image ({str(e).splitlines()[0][:100]})") from None
    if "A" in image.getbands() or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    out = np.asarray(image)
    return out[None] if channels == 1 else out.transpose(2, 0, 1)
