"""Images in: scikit-learn's digits, IDX files, folders and archives with a folder a class; their pixels."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import media, registry
from .examples import Example
from .text import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
PIXELS = 50_000_000  # of one image, at most
TURNS = {  # of an EXIF orientation
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"},
    **{5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}


def read(source, cfg=None, part: str = "train") -> list[Example]:
    """[Example(text: what `pixels` decodes, label: its class or None, where)].

    source: a data set, a table of files with their texts, a folder or archive (a file's class is the name of
    its folder), an IDX file, or one image. Raises DataError.
    """
    if source == "digits":
        return digits()
    if source == "mnist":
        return mnist(part)
    return media.read(cfg, source, part, SUFFIXES, "images", "digits, mnist", _labelled)


def _labelled(path: Path) -> list[Example] | None:
    named = "idx3" in path.name or "idx1" in path.name
    if named and path.is_file() and path.suffix.lower() not in SUFFIXES:
        return idx(path)
    return media.labelled(path, SUFFIXES, lambda name: name.parent.name or None)


def mnist(part: str) -> list[Example]:
    """MNIST; the last 5,000 training images are held out."""
    if part not in ("train", "valid", "test"):
        raise DataError(f"data set mnist has no part '{part}'; it has train, valid, test")
    side = "t10k" if part == "test" else "train"
    registry.fetch("mnist", f"{side}-labels-idx1")
    found = idx(registry.fetch("mnist", f"{side}-images-idx3"))
    return {"train": found[:55000], "valid": found[55000:], "test": found}[part]


def digits() -> list[Example]:
    """1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = (x.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    return [Example(p, label=str(n), where=f"digits, row {i}") for i, (p, n) in enumerate(zip(pixels, y), 1)]


def idx(path: Path) -> list[Example]:
    """An IDX file of images (LeCun's, of MNIST), and its labels, if they are beside it. Raises DataError."""
    images = path.with_name(path.name.replace("labels", "images").replace("idx1", "idx3"))
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    x = array(images, 3)
    y = array(labels, 1) if labels.exists() and labels != images else [None] * len(x)
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x)} images and {labels} {len(y)} labels")
    known = lambda n: None if n is None else str(n)
    numbered = enumerate(zip(x, y), 1)
    return [Example(p[..., None], label=known(n), where=f"{images}, image {i}") for i, (p, n) in numbered]


def array(path: Path, dims: int) -> np.ndarray:
    """uint8 of an IDX file of so many dimensions, packed by gzip or not. Raises DataError for any other."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, count = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{count}I", raw[4 : 4 + 4 * count])
    except FileNotFoundError:
        raise DataError(f"there is no IDX file {path}") from None
    except (OSError, EOFError, zlib.error, struct.error) as e:
        raise DataError(f"{path} is damaged: {e}") from None
    if zero or kind != 8 or count != dims:
        raise DataError(f"{path} is no IDX file of bytes in {dims} dimensions")
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * count)
    if len(values) != math.prod(shape):
        what = "is cut off" if len(values) < math.prod(shape) else "is damaged"
        raise DataError(f"{path} {what}: it says {' x '.join(map(str, shape))} and holds {len(values)} bytes")
    return values.reshape(shape)


def pixels(example: Example, size: int, channels: int) -> np.ndarray:
    """(channels, size, size) uint8 of an example: what `decode` makes of it, grey or colour, scaled to a
    square of that size. Raises DataError."""
    from PIL import Image

    image = decode(example.text, example.where).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    out = np.asarray(image)
    return out[None] if channels == 1 else out.transpose(2, 0, 1)


def decode(source: str | Path | bytes | np.ndarray, where: str = "the image") -> "Picture":
    """An upright image of 8 bits a value, grey ("L") or colour ("RGB"), of a file, its bytes or an array.

    - What is in a file counts, not its suffix. Of an animation or of several pages it is the first.
    - It is turned as its EXIF orientation says; as it is stored, where its EXIF is damaged.
    - Grey of 12, 16 or 32 bits is divided by the white of its depth; of 16-bit colour the high bytes are
      taken (Pillow reads no others). Floats are from 0 (black) to 1 (white).
    - What is transparent (by an alpha channel, a palette or a colour) lies on white.
    - CMYK becomes RGB by the plain formula, LAB becomes sRGB. Colour profiles (ICC) are not applied.
    - Arrays are (H, W) or (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, of bool, unsigned integers
      (white is the largest of their type) or floats from 0 to 1.

    Raises DataError, by the name `where`, for what is empty, damaged, no image or over PIXELS, and for values
    of which none is known as white (integers with a sign, floats beyond 0 to 1).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(source, np.ndarray):
            return _flat(Image.fromarray(_eight_bits(_shaped(source))))
        raw = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not raw:
            raise ValueError("it is empty: 0 bytes")
        with Image.open(io.BytesIO(raw)) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise ValueError(f"it has {width} x {height} pixels, over {PIXELS:,}; make it smaller")
            image.load()
            turn, tags = TURNS.get(_orientation(image)), _tags(image)
            flat = _flat(_grey(image, tags) if image.mode[0] in "IF" else _keyed(image, raw))
        return flat.transpose(Image.Transpose[turn]) if turn else flat
    except Image.DecompressionBombError:
        reason = f"it has over {PIXELS:,} pixels; make it smaller"
    except UnidentifiedImageError:
        reason = "it is in no format that Pillow knows"
    except OSError as e:
        reason = e.strerror or str(e)
    except Exception as e:  # on damaged bytes a decoder raises whatever it stumbles over
        reason = str(e) or type(e).__name__
    raise DataError(f"{where}: cannot be read as an image ({reason.splitlines()[0][:200]})")


def _orientation(image: "Picture") -> int:
    """Of EXIF or XMP, 1 where there is none. `ImageOps.exif_transpose` writes all other tags anew as well,
    and fails where one of them is odd."""
    from PIL import ExifTags

    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged in any way; the image is not
        return 1


def _shaped(x: np.ndarray) -> np.ndarray:
    if x.ndim not in (2, 3) or (x.ndim == 3 and not 1 <= x.shape[2] <= 4) or not x.size:
        raise ValueError(f"an array is (height, width) or (height, width, 1 to 4 channels), not {x.shape}")
    return x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x


def _eight_bits(x: np.ndarray, white: float | None = None) -> np.ndarray:
    """uint8 of values from 0 to white, by default that of their type."""
    if x.dtype.kind == "f":
        if not (x.min() >= 0 and x.max() <= 1):
            reach = f"from {x.min():g} to {x.max():g}"
            raise ValueError(f"its values are floats {reach}; they must be from 0, black, to 1, white")
        white = 1
    elif x.dtype.kind == "b":
        white = 1
    elif x.dtype.kind != "u":
        raise ValueError(f"no value of {x.dtype} is known as white; give uint8, uint16 or floats from 0 to 1")
    return (x * (255 / (white or np.iinfo(x.dtype).max))).round().astype(np.uint8)


def _grey(image: "Picture", tags: Mapping) -> "Picture":
    """One of more than 8 bits a value. A TIFF says how many (258), and which end is white (262); other
    formats are opened with 16, all of which count, or as floats."""
    from PIL import Image

    x = np.asarray(image)
    x = x.view(np.uint32) if image.mode == "I" else x
    white = 2 ** tags.get(258, (16,))[0] - 1
    if x.max() > white:
        raise ValueError(f"its values reach {x.max():,}, over {white:,}, which is white")
    out = _eight_bits(x, white)
    if tags.get(262) == 0:
        out = 255 - out
    if "transparency" in image.info:
        out[x == image.info["transparency"]] = 255
    return Image.fromarray(out)


def _keyed(image: "Picture", raw: bytes) -> "Picture":
    """One of 8 bits a value. A PNG says in its own depth (byte 24) which colour is transparent, and Pillow
    seeks it among values of 8 bits."""
    key = image.info.get("transparency")
    if image.format == "PNG" and isinstance(key, tuple):
        image.info["transparency"] = tuple(v >> (raw[24] - 8) & 255 for v in key)
    elif image.format == "PNG" and image.mode == "L" and isinstance(key, int):
        most = 2 ** raw[24] - 1
        image.info["transparency"] = (key & most) * 255 // most
    return image


def _tags(image: "Picture") -> Mapping:
    """Of a TIFF. Raises ValueError where they say that the values have a sign (339)."""
    from PIL.TiffImagePlugin import TiffImageFile

    tags: Mapping = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if 2 in tags.get(339, ()):
        raise ValueError("its values have a sign, and none is known as white")
    return tags


def _flat(image: "Picture") -> "Picture":
    """Grey or RGB, what is transparent on white."""
    from PIL import Image

    if image.mode == "La":  # alpha multiplied in already; Pillow knows but this way out of it
        image = image.convert("LA")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
