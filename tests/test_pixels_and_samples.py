"""One way from a file, bytes or an array to pixels, and one to samples; and from folders, archives and tables
to files."""

import gzip
import io
import json
import re
import struct
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

import qkv
from qkv import models
from qkv.data import Data, audio, images, media
from qkv.data.examples import Example
from qkv.data.text import DataError
from qkv.objectives.images import Images

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)


# --- files, written by hand where Pillow does not write them ---
def saved(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def seen(source, mode="RGB"):
    """(H, W) or (H, W, 3) of what is decoded."""
    return np.asarray(images.decode(source, "x").convert(mode)).astype(int)


def png(rows, width, depth, colour, key=None):
    """A PNG of packed rows. key: values of the colour that is transparent."""
    number = lambda n: struct.pack(">I", n)
    chunk = lambda kind, data: number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    clear = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = zlib.compress(b"".join(b"\0" + r for r in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(data, width, height, bits, photometric=1, kind=1, samples=1, extra=None, end="<"):
    """An uncompressed TIFF of one strip. kind: 1 whole numbers, 2 with a sign, 3 floats; extra: 1 multiplied
    alpha, 2 alpha."""
    tags = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [1],
        262: [photometric],
        277: [samples],
        278: [height],
    }
    tags |= {339: [kind] * samples} | ({} if extra is None else {338: [extra]})
    first = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries, tail = {}, b""
    for tag, values in tags.items():
        packed = struct.pack(f"{end}{len(values)}H", *values)
        if len(packed) > 4:
            packed, tail = struct.pack(f"{end}I", first + len(tail)), tail + packed
        entries[tag] = struct.pack(f"{end}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    for tag, value in ((273, first + len(tail)), (279, len(data))):
        entries[tag] = struct.pack(f"{end}HHII", tag, 4, 1, value)
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}IH", 8, len(entries))
    return head + b"".join(v for _, v in sorted(entries.items())) + b"\0" * 4 + tail + data


def exif(*entries):
    """EXIF of (tag, type, count, four bytes)."""
    rows = b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + b"\0" * 4


def bits(values, depth):
    """Bytes of a row of values of so many bits, the highest first; zeros fill the last."""
    row = "".join(f"{v:0{depth}b}" for v in values)
    return int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big")


def scaled(x, white):
    """round(255 x / white), in whole numbers."""
    x = x.astype(object)
    return ((510 * x + white) // (2 * white)).astype(int)


def on_white(colour, alpha):
    alpha = alpha[..., None] if colour.ndim == 3 else alpha
    return (colour.astype(int) * alpha + 255 * (255 - alpha.astype(int))) / 255


def raises(message, call):
    with pytest.raises(DataError, match=message):
        call()


# --- pixels ---
TURNED = {  # what an orientation asks for, in numpy
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
WRITTEN = {
    "PNG": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK"),
}


def painted(seed, height, width, mode):
    r = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(r.integers(0, 2**16, (height, width)).astype(np.uint16))
    if mode == "F":
        return Image.fromarray(r.random((height, width)).astype(np.float32))
    return Image.fromarray(r.integers(0, 256, (height, width, 4)).astype(np.uint8)).convert(mode)


@FEW
@given(SEEDS, SIDES, SIDES, st.sampled_from([(k, m) for k, modes in WRITTEN.items() for m in modes]))
def test_a_photograph_is_seen_as_its_orientation_says(seed, height, width, written):
    """All eight, in every format and mode, against numpy and against Pillow; another number turns nothing."""
    kind, mode = written
    image, how = painted(seed, height, width, mode), {"lossless": True} if kind == "WEBP" else {}
    plain = seen(saved(image, kind, **how))
    for orientation in range(10):
        tag = Image.Exif()
        tag[ExifTags.Base.Orientation] = orientation
        turned = saved(image, kind, exif=tag, **how)
        assert np.array_equal(seen(turned), TURNED.get(orientation, TURNED[1])(plain))
        if mode in ("RGB", "L", "CMYK"):
            with Image.open(io.BytesIO(turned)) as given:
                want = np.asarray(ImageOps.exif_transpose(given).convert("RGB"))
            assert np.array_equal(seen(turned), want)


def test_orientation_is_found_in_xmp_and_beside_odd_tags():
    """Where `exif_transpose` gives up; EXIF that cannot be read turns nothing."""
    image = painted(0, 3, 5, "RGB")
    stored = seen(saved(image, "JPEG"))
    right = (274, 3, 1, struct.pack("<HH", 6, 0))
    for odd, stumbles in (
        ((301, 9, 1, b"\x86\x0c>5"), struct.error),
        ((319, 1, 1, b"\xfa\xb5\x1b\x10"), TypeError),
        ((34853, 8, 1, b"\xe1\xae}\xa9"), ValueError),
    ):
        raw = saved(image, "JPEG", exif=exif(*sorted([right, odd])))
        with pytest.raises(stumbles), Image.open(io.BytesIO(raw)) as given:
            ImageOps.exif_transpose(given)
        assert np.array_equal(seen(raw), np.rot90(stored, -1))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    assert np.array_equal(seen(saved(image, "JPEG", xmp=xmp)), np.rot90(stored))
    for junk in (
        b"Exif\0\0",
        b"Exif\0\0rubbish rubbish",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif((274, 2, 1, b"6\0\0\0")),
    ):
        assert np.array_equal(seen(saved(image, "JPEG", exif=junk)), stored)
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 4\nnot hexadecimal")
    assert np.array_equal(seen(saved(image, "PNG", pnginfo=text)), np.asarray(image))


@FEW
@given(SEEDS, SIDES, SIDES, st.booleans())
def test_grey_of_any_depth_is_divided_by_its_white(seed, height, width, inverted):
    x = np.random.default_rng(seed).integers(0, 2**16, (height, width)).astype(np.uint16)
    x[0, -1] = 65535
    zero = 0 if inverted else 1  # which end is white
    ends = lambda y: 255 - y if inverted else y
    big, wide, real = x.astype(">u2"), x.astype(np.uint32) * 65537, (x / 65535).astype(np.float32)
    assert np.array_equal(seen(saved(Image.fromarray(x), "PNG"), "L"), scaled(x, 65535))
    assert np.array_equal(seen(saved(Image.fromarray(big), "TIFF"), "L"), scaled(x, 65535))
    assert np.array_equal(seen(tiff(x.tobytes(), width, height, 16, zero), "L"), ends(scaled(x, 65535)))
    assert np.array_equal(seen(tiff(big.tobytes(), width, height, 16, end=">"), "L"), scaled(x, 65535))
    assert np.array_equal(seen(tiff(wide.tobytes(), width, height, 32), "L"), scaled(wide, 2**32 - 1))
    assert np.array_equal(seen(tiff(real.tobytes(), width, height, 32, zero, 3), "L"), ends(scaled(x, 65535)))
    assert np.array_equal(seen(b"P5 %d %d 65535\n" % (width, height) + big.tobytes(), "L"), scaled(x, 65535))
    low = x >> 4
    packed = b"".join(bits(row, 12) for row in low)
    assert np.array_equal(seen(tiff(packed, width, height, 12), "L"), scaled(low, 4095))
    for most in (1000, 200):  # Pillow makes them 16 and 8 bits first
        y = (x % (most + 1)).astype(">u2" if most > 255 else np.uint8)
        found = seen(b"P5 %d %d %d\n" % (width, height, most) + y.tobytes(), "L")
        assert np.abs(found - scaled(y.astype(int), most)).max() <= 1
    for array in (x, big, wide, real, x / 65535):
        assert np.array_equal(seen(array, "L"), scaled(x, 65535)), array.dtype
    assert np.array_equal(seen(x > 9999, "L"), (x > 9999) * 255)
    file, array = Example(saved(Image.fromarray(x), "PNG")), Example(x)
    assert np.array_equal(images.pixels(file, 4, 1), images.pixels(array, 4, 1))


@FEW
@given(SEEDS, SIDES, SIDES)
def test_what_is_transparent_lies_on_white(seed, height, width):
    """Alpha of 8 and 16 bits, multiplied in or not, of palettes and of arrays."""
    r = np.random.default_rng(seed)
    x = r.integers(0, 256, (height, width, 4)).astype(np.uint8)
    colour, alpha = x[..., :3], x[..., 3]
    lossless = {"lossless": True, "exact": True}
    for raw in (
        saved(Image.fromarray(x), "PNG"),
        saved(Image.fromarray(x), "WEBP", **lossless),
        saved(Image.fromarray(x), "TIFF"),
        x,
    ):
        assert np.abs(seen(raw) - on_white(colour, alpha)).max() <= 1
    two = np.ascontiguousarray(x[..., 2:])
    for raw in (
        saved(Image.fromarray(two, "LA"), "PNG"),
        tiff(two.tobytes(), width, height, 8, 1, 1, 2, 2),
        two,
    ):
        assert np.abs(seen(raw, "L") - on_white(two[..., 0], alpha)).max() <= 1
    deep = png([row.tobytes() for row in x.astype(">u2") * 257], width, 16, 6)
    assert np.abs(seen(deep) - on_white(colour, alpha)).max() <= 1
    deep = two.astype(">u2") * 257
    raw = png([row.tobytes() for row in deep], width, 16, 4)
    assert np.abs(seen(raw, "L") - on_white(two[..., 0], alpha)).max() <= 1
    assert np.abs(seen(deep.astype(np.uint16), "L") - on_white(two[..., 0], alpha)).max() <= 1
    multiplied = np.dstack([np.minimum(two[..., 0], alpha), alpha])  # what lies on white adds 255 - alpha
    found = seen(tiff(multiplied.tobytes(), width, height, 8, 1, 1, 2, 1), "L")
    assert np.abs(found - (multiplied[..., 0] + 255.0 - alpha)).max() <= 2
    palette, opacity = r.integers(0, 256, (256, 3)).astype(np.uint8), r.integers(0, 256, 256).astype(np.uint8)
    image = Image.fromarray(x[..., 0], "P")
    image.putpalette(palette.tobytes())
    want = palette[x[..., 0]]
    assert np.array_equal(seen(saved(image, "PNG")), want) and np.array_equal(seen(saved(image, "GIF")), want)
    found = seen(saved(image, "PNG", transparency=opacity.tobytes()))
    assert np.abs(found - on_white(want, opacity[x[..., 0]])).max() <= 1
    clear = int(x[0, 0, 0])
    want = np.where(x[..., :1] == clear, 255, want)
    assert np.array_equal(seen(saved(image, "GIF", transparency=clear)), want)
    assert np.array_equal(seen(saved(image, "PNG", transparency=clear)), want)


@FEW
@given(SEEDS, SIDES, SIDES, st.sampled_from([1, 2, 4, 8, 16]))
def test_the_colour_that_a_png_calls_transparent_is_found_at_every_depth(seed, height, width, depth):
    r = np.random.default_rng(seed)
    x = r.integers(0, 2**depth, (height, width))
    key = int(x[0, -1])
    rows = [bits(row, depth) for row in x]
    want = np.where(x == key, 255, scaled(x, 2**depth - 1))
    assert np.array_equal(seen(png(rows, width, depth, 0, [key]), "L"), want)
    y = r.integers(0, 3, (height, width, 3)) * 85
    if depth >= 8:
        size = np.dtype(np.uint8 if depth == 8 else ">u2")
        deep = (y * (1 if depth == 8 else 257)).astype(size)
        key = [int(v) for v in deep[-1, 0]]
        want = np.where((y == y[-1, 0]).all(-1, keepdims=True), 255, y)
        assert np.array_equal(seen(png([row.tobytes() for row in deep], width, depth, 2, key)), want)
        assert np.array_equal(seen(png([row.tobytes() for row in deep], width, depth, 2)), y)
    # a key of 16 bits is no value of 8: 5 is nearly black, not the colour 5 x 257
    grey = np.full((1, 1, 3), 5 * 257, ">u2").tobytes()
    assert (seen(png([grey], 1, 16, 2, [5, 5, 5])) == 5).all()


@FEW
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_inks_luminance_and_lab_become_rgb(ink):
    """By the formulas of each; CMYK of JPEGs is stored inverted, as Adobe does."""
    c, k = np.array(ink[:3]), ink[3]
    flat = np.full((8, 8, 4), ink, np.uint8)
    want = (255 - c) * (255 - k) / 255
    raw = saved(Image.fromarray(flat, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in raw and np.abs(seen(raw) - want).max() <= 5
    assert np.abs(seen(saved(Image.fromarray(flat, "CMYK"), "TIFF")) - want).max() <= 1
    y, cb, cr = ink[0], ink[1] - 128, ink[2] - 128
    want = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    flat = np.full((2, 2, 3), ink[:3], np.uint8)
    assert np.abs(seen(saved(Image.fromarray(flat, "YCbCr"), "TIFF")) - want).max() <= 2
    rgb = (64 + c // 2) / 255  # where a step of a or b is a few of red, green and blue
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_d50 = [
        [0.43607, 0.38506, 0.14308],
        [0.22250, 0.71688, 0.06062],
        [0.01393, 0.09710, 0.71417],
    ]  # sRGB, seen at D50
    ratio = np.array(to_d50) @ linear / [0.96422, 1, 0.82521]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29)
    lab = np.round([255 / 100 * (116 * f[1] - 16), 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    raw = tiff(lab.astype(int).astype(np.uint8).tobytes() * 4, 2, 2, 8, 8, samples=3)
    assert np.abs(seen(raw) - 255 * rgb).max() <= 12


@FEW
@given(SEEDS, st.integers(1, 9), st.sampled_from(["GIF", "PNG", "WEBP", "TIFF"]))
def test_the_first_image_of_an_animation_is_read(seed, side, kind):
    frames = [painted(seed + n, side, side, "L" if kind == "GIF" else "RGB") for n in range(3)]
    how = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert Image.open(io.BytesIO(raw)).n_frames > 1 or side == 1
    assert np.array_equal(seen(raw), np.asarray(frames[0].convert("RGB")))


def test_colour_profiles_are_not_applied():
    from PIL import ImageCms

    image, profile = (
        painted(0, 4, 4, "RGB"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes(),
    )
    assert np.array_equal(seen(saved(image, "PNG", icc_profile=profile)), np.asarray(image))


@FEW
@given(SEEDS, SIDES, SIDES, st.sampled_from([1, 3]), st.integers(1, 12))
def test_pixels_are_those_of_pillow_at_any_size(seed, height, width, channels, side):
    """Of a file, its bytes and an array alike; the file's suffix does not count."""
    image = painted(seed, height, width, "RGB")
    plain = image.convert("L" if channels == 1 else "RGB")
    want = np.asarray(plain.resize((side, side), Image.Resampling.BICUBIC))
    want = want[None] if channels == 1 else want.transpose(2, 0, 1)
    for source in (
        np.asarray(image),
        saved(image, "PNG"),
        saved(image, "BMP"),
        saved(image, "TIFF", compression="tiff_lzw"),
    ):
        found = images.pixels(Example(source, where="x"), side, channels)
        assert found.dtype == np.uint8 and np.array_equal(found, want)


def test_a_files_suffix_does_not_count(tmp_path):
    image = painted(0, 6, 5, "RGB")
    for kind, name in (("JPEG", "a.png"), ("PNG", "B.JPG"), ("GIF", "c.tiff"), ("WEBP", "d.bmp")):
        path, raw = tmp_path / name, saved(image, kind)
        path.write_bytes(raw)
        for source in (path, str(path)):
            assert np.array_equal(seen(source), seen(raw))
    for mode in ("RGB", "L", "RGBA", "P", "1", "I;16"):  # of one pixel
        assert images.pixels(Example(saved(painted(1, 1, 1, mode), "PNG")), 4, 3).std((1, 2)).max() == 0


RAW = {
    **{k: saved(painted(7, 20, 30, "RGB"), k) for k in ("JPEG", "BMP", "WEBP", "PPM")},
    **{k: saved(painted(8, 20, 30, m), k) for k, m in (("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "I;16"))},
}


@FEW
@given(st.sampled_from(list(RAW)), st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_refused(kind, share):
    """Or whole, where only what follows the image is gone."""
    raw = RAW[kind][: int(share * len(RAW[kind]))]
    try:
        assert np.array_equal(seen(raw), seen(RAW[kind]))
    except DataError as e:
        assert str(e).startswith("x: cannot be read as an image (") and "0x" not in str(e)


@FEW
@given(st.sampled_from(list(RAW)), st.data())
def test_damaged_bytes_are_an_image_or_a_sentence(kind, data):
    raw = bytearray(RAW[kind])
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[at] ^= data.draw(st.integers(1, 255))
    try:
        seen(bytes(raw))
    except DataError as e:
        assert len(str(e)) < 300 and "\n" not in str(e)


def test_images_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    huge = lambda w, h: png([b""], w, 8, 0).replace(struct.pack(">II", w, 1), struct.pack(">II", w, h))
    fixed = lambda raw: raw[:29] + struct.pack(">I", zlib.crc32(raw[12:29])) + raw[33:]
    (tmp_path / "zero.png").touch()
    half = (np.ones((2, 2)) / 2).astype(np.float32)
    odd = tiff(bytes(8), 2, 2, 16).replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 7))
    for source, message in (
        (b"", "is empty: 0 bytes"),
        (tmp_path / "zero.png", "is empty: 0 bytes"),
        (tmp_path / "gone.png", "No such file"),
        (tmp_path, "Is a directory"),
        (b"words, words", "no format that Pillow knows"),
        (fixed(huge(8000, 8000)), "has 8000 x 8000 pixels, over 50,000,000; make it smaller"),
        (fixed(huge(60000, 60000)), "over 50,000,000 pixels; make it smaller"),
        (tiff(struct.pack("<4h", 1, 2, 3, 4), 2, 2, 16, kind=2), "have a sign"),
        (tiff(struct.pack("<4i", 1, 2, 3, 4), 2, 2, 32, kind=2), "have a sign"),
        (tiff(bytes(4), 2, 2, 8, kind=2), "have a sign"),
        (tiff((half * 9).tobytes(), 2, 2, 32, kind=3), "from 4.5 to 4.5; they must be from 0, black, to 1"),
        (tiff((half * np.nan).tobytes(), 2, 2, 32, kind=3), "floats from nan to nan"),
        (half * -1, "floats from -0.5 to -0.5"),
        (np.ones((2, 2), np.int64), "no value of int64 is known as white; give uint8, uint16 or floats"),
        (np.ones((3, 8, 8), np.uint8), r"\(height, width\) or .*, not \(3, 8, 8\)"),
        (np.ones((0, 5, 1), np.uint8), r"not \(0, 5, 1\)"),
        (np.ones(5, np.uint8), r"not \(5,\)"),
        (odd, "cannot be interpreted as an integer"),  # TypeError, of Pillow
        ([[0, 1]], "not list"),
    ):  # fmt: skip
        raises(
            f"^photo: cannot be read as an image .*{message}",
            lambda source=source: images.decode(source, "photo"),
        )


def test_the_tasks_see_photographs_upright(tmp_path):
    """What a model is given, of a photograph that lies on its side."""
    x = np.zeros((8, 8, 3), np.uint8)
    x[:, :4] = 255
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    Image.fromarray(x).save(tmp_path / "a.png", exif=tag)
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "b.png")
    task = Images(models.preset("vit-nano", image=8, patch=4, channels=3, labels=2, label_names=("a", "b")))
    upright, grey = (i["pixels"] for i in task.encode(images.read(tmp_path)))
    assert (upright[:, :4] == 255).all() and (upright[:, 4:] == 0).all() and (grey == 128).all()


def test_there_is_one_way_in():
    """Files of pictures and of sounds are opened in one place each."""
    root = Path(qkv.__file__).parent
    code = {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*.py")}
    for call, place in ((r"\bImage\.open\(", "data/images.py"), (r"\bSoundFile\(", "data/audio.py")):
        found = {n: len(re.findall(call, text)) for n, text in code.items()}
        assert {n: times for n, times in found.items() if times} == {place: 1}
    others = r"soundfile\.(read|blocks)|torchaudio|torchvision|imread|scipy\.io|\bimport wave\b|cv2"
    assert not [n for n, text in code.items() if re.search(others, text) and n != "models/conformer.py"]


# --- IDX files ---
@FEW
@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, SIDES)), st.booleans(), st.booleans(), st.data())
def test_idx_files_are_read_or_refused_whole(tmp_path_factory, x, packed, labelled, data):
    folder, end = tmp_path_factory.mktemp("idx"), ".gz" if packed else ""
    names = [folder / f"t-images-idx3-ubyte{end}", folder / f"t-labels-idx1-ubyte{end}"]
    write = lambda path, raw: path.write_bytes(gzip.compress(raw) if packed else raw)
    idx = lambda y: struct.pack(f">HBB{y.ndim}I", 0, 8, y.ndim, *y.shape) + y.tobytes()
    labels = np.arange(len(x), dtype=np.uint8)
    write(names[0], idx(x))
    if labelled:
        write(names[1], idx(labels))
    for name in names if labelled else names[:1]:  # by either of the two
        rows = images.read(name)
        assert [e.label for e in rows] == [str(n) if labelled else None for n in labels]
        assert all(np.array_equal(seen(e.text, "L"), y) for e, y in zip(rows, x))
        assert rows[0].where == f"{names[0]}, image 1"
    whole = idx(x)
    at = data.draw(st.integers(0, len(whole) - 1))
    for raw in (whole[:at], whole + b"\0"):
        write(names[0], raw)
        raises("is cut off|is damaged|is no IDX file", lambda: images.read(names[0]))
    squeezed = bytearray(gzip.compress(whole))
    squeezed[data.draw(st.integers(10, len(squeezed) - 1))] ^= 255
    names[0].write_bytes(squeezed)
    raises("is cut off|is damaged|is no IDX file", lambda: images.read(names[0]))


def test_what_is_named_like_an_idx_file_and_is_none(tmp_path):
    (tmp_path / "my-idx3-images/cat").mkdir(parents=True)
    painted(0, 2, 2, "RGB").save(tmp_path / "my-idx3-images/cat/idx3.png")
    assert [e.label for e in images.read(tmp_path / "my-idx3-images")] == ["cat"]
    assert len(images.read(tmp_path / "my-idx3-images/cat/idx3.png")) == 1
    (tmp_path / "x-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 1) + b"\0")
    labels = tmp_path / "x-labels-idx1-ubyte"
    raises("there is no IDX file .*x-images-idx3-ubyte", lambda: images.read(labels))


def test_digits_reach_from_black_to_white():
    from sklearn.datasets import load_digits

    x = load_digits().images.astype(int)
    assert np.array_equal([e.text[..., 0] for e in images.read("digits")], scaled(x, 16)) and x.max() == 16


def test_mnist_and_emoji_are_what_they_are(shared):
    """Real sets: IDX, and RGBA pictures in a zip, by a table."""
    path = shared / "image_mnist/t10k-images-idx3-ubyte.gz"
    x = np.frombuffer(gzip.decompress(path.read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    rows = images.read(path)
    assert len(rows) == 10000 and rows[0].label == "7"
    assert all(np.array_equal(images.pixels(rows[i], 28, 1)[0], x[i]) for i in range(0, 10000, 999))
    cfg = Data(files=str(shared / "imagetext_emoji/noto_72x72.zip"), text="file", pair="name")
    rows = media.table(cfg, shared / "imagetext_emoji/names.tsv", "train", images.SUFFIXES)
    assert len(rows) == 3528
    for e in rows[::500]:
        with Image.open(io.BytesIO(e.text)) as image:
            rgba = np.asarray(image.convert("RGBA"))
        assert np.abs(seen(e.text) - on_white(rgba[..., :3], rgba[..., 3])).max() <= 1


# --- folders, archives, tables ---
NAMES = ("cats/1.png", "cats/2.JPG", "dogs/1.png", "dogs/deep/3.Png", "4.png")
OTHERS = (
    "__MACOSX/cats/._1.png",
    "cats/._1.png",
    ".ipynb_checkpoints/1-checkpoint.png",
    "cats/.DS_Store",
    "cats/notes.md",
    "5.heic",
)


def packed_all(where, folder):
    """A zip and tars of a folder, the files in another order than that of their names."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), reverse=True)
    with zipfile.ZipFile(where / "a.zip", "w") as z:
        z.mkdir("folder.png")
        for p in files:
            z.write(p, p.relative_to(folder))
    with zipfile.ZipFile(where / "windows.zip", "w") as z:
        for p in files:
            info = zipfile.ZipInfo("x")
            info.filename = str(p.relative_to(folder)).replace("/", "\\")
            z.writestr(info, p.read_bytes())
    for end, mode in (("tar", "w"), ("tgz", "w:gz"), ("tar.xz", "w:xz"), ("TAR.BZ2", "w:bz2")):
        with tarfile.open(where / f"a.{end}", mode) as t:
            t.add(folder, arcname=".")
    return [where / name for name in ("a.zip", "windows.zip", "a.tar", "a.tgz", "a.tar.xz", "a.TAR.BZ2")]


def test_a_folder_and_its_archives_are_read_alike(tmp_path, capsys):
    """Suffixes in capitals count; hidden files, those of macOS and folders called like a picture do not; the
    rest is counted."""
    folder = tmp_path / "a"
    for i, name in enumerate((*NAMES, *OTHERS)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"other" if name in OTHERS else saved(painted(i, 4, 4, "RGB"), "PNG"))
    (folder / "folder.png").mkdir()
    rows = images.read(folder)
    assert "2 files beside the 5 read are left out (1 .heic, 1 .md)" in capsys.readouterr().err
    assert [(e.text.relative_to(folder).as_posix(), e.label) for e in rows] == [
        ("4.png", None),
        ("cats/1.png", "cats"),
        ("cats/2.JPG", "cats"),
        ("dogs/1.png", "dogs"),
        ("dogs/deep/3.Png", "deep"),
    ]
    for archive in packed_all(tmp_path, folder):
        found = images.read(archive)
        assert "2 files beside the 5 read are left out" in capsys.readouterr().err
        assert [(e.text, e.label) for e in found] == [(e.text.read_bytes(), e.label) for e in rows], archive
        assert [e.where for e in found] == [f"{archive}: {e.text.relative_to(folder)}" for e in rows]


def test_archives_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats/1.png").write_bytes(RAW["PNG"])
    (folder / "cats/zero.png").touch()
    every = packed_all(tmp_path, folder)
    for archive in every:
        whole, bad = archive.read_bytes(), tmp_path / f"bad{archive.suffix}"
        bad.write_bytes(whole[: len(whole) // 2])
        raises(f"{bad} is damaged: ", lambda bad=bad: images.read(bad))
        zero = next(e for e in images.read(archive) if e.where.endswith("zero.png"))
        raises(f"^{archive}: cats/zero.png: .*empty: 0 bytes", lambda zero=zero: images.pixels(zero, 4, 3))
    (tmp_path / "none.zip").touch()
    raises("none.zip is damaged", lambda: images.read(tmp_path / "none.zip"))
    locked = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the bit that says a password is needed
        for found in re.finditer(mark, bytes(locked)):
            locked[found.start() + at] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    raises("locked.zip cannot be read: .*password", lambda: images.read(tmp_path / "locked.zip"))
    monkeypatch.setattr(media, "LARGEST", 100)
    for archive in every:
        raises("cats/1.png: has .* bytes unpacked, over 100", lambda archive=archive: images.read(archive))


INSIDE = {f"{i}.png": bytes([i]) * 900 for i in range(5)}


def archived(kind):
    """A zip or tar of INSIDE, the same bytes each time."""
    out = io.BytesIO()
    if isinstance(kind, int):
        with zipfile.ZipFile(out, "w", kind) as z:
            for name, raw in INSIDE.items():
                z.writestr(zipfile.ZipInfo(name), raw, kind)
    else:
        with tarfile.open(fileobj=out, mode=f"w:{kind}") as t:
            for name, raw in INSIDE.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                t.addfile(info, io.BytesIO(raw))
    return out.getvalue()


PACKED = {kind: archived(kind) for kind in (0, 8, 12, 14, "gz", "xz", "bz2")}


@FEW
@given(st.sampled_from(list(PACKED)), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
def test_a_damaged_archive_gives_its_files_or_a_sentence(tmp_path_factory, kind, share, flip):
    """Cut off (flip = 0) or with a wrong byte: never some of its files, or others, unless a zip's list of
    them is hit, which alone is under no sum."""
    raw = PACKED[kind]
    at = int(share * len(raw))
    path = tmp_path_factory.mktemp("archive") / f"all.{'zip' if isinstance(kind, int) else 'tar.' + kind}"
    path.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :] if flip else raw[:at])
    try:
        found = {str(n): b for n, b in media.files(path, (".png",)).items()}
    except DataError as e:
        assert str(path) in str(e)
    else:
        assert found == INSIDE or (flip and isinstance(kind, int) and at > raw.index(b"PK\1\2"))


def test_a_tar_that_breaks_off_behind_a_file_is_refused(tmp_path):
    """Python's reader takes a header that it cannot read for the end."""
    raw = bytearray(archived(""))
    raw[3 * 512] ^= 1  # the name of the second file, under the sum of its header
    (tmp_path / "a.tar").write_bytes(raw)
    raises("a.tar is damaged: behind the last file", lambda: media.files(tmp_path / "a.tar", (".png",)))
    (tmp_path / "two.tar").write_bytes(archived("") * 2)  # one behind the other, of which tar reads the first
    raises("two.tar is damaged: behind the last file", lambda: media.files(tmp_path / "two.tar", (".png",)))


def test_a_table_means_one_file_of_an_archive(tmp_path):
    """Its path as it lies there, or with more or fewer folders if one alone fits; two of one name are told
    apart."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for name in ("set/cats/1.png", "set/dogs/1.png", "set/dogs/2.png", "set/9.png", "9.png"):
            z.writestr(name, name)
    table = tmp_path / "T.CSV"
    read = lambda *names, **more: (
        table.write_text("file,name\n" + "".join(f"{n},a {i}\n" for i, n in enumerate(names))),
        images.read(table, Data(files=str(tmp_path / "a.zip"), **more)),
    )[1]
    for name in ("set/dogs/1.png", "dogs/1.png", "my/set/dogs/1.png", "dogs\\1.png", "./dogs/1.png"):
        assert read(name)[0].text == b"set/dogs/1.png"
    assert [e.text for e in read("9.png", "set/9.png")] == [b"9.png", b"set/9.png"]
    assert [e.text for e in read("2.png", "cats/1.png")] == [b"set/dogs/2.png", b"set/cats/1.png"]
    raises(
        "row 3: 1.png fits 2 files in .*set/cats/1.png, set/dogs/1.png.*name it with its folder",
        lambda: read("2.png", "1.png"),
    )
    raises("row 2: there is no file cats/2.png in", lambda: read("cats/2.png"))  # that of the dogs is another
    raises("row 2: there is no file 3.heic in .*that end in .png", lambda: read("3.heic"))


def test_tables_of_files_take_what_people_write(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/1.png").write_bytes(RAW["PNG"])
    rows = [
        {"file": "sub/1.png", "text": 7},
        {"file": "sub\\1.png", "text": "a dog"},
        {"file": "sub/1.png", "text": True},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = images.read(tmp_path / "t.jsonl", Data(without="dog"))
    assert [e.label.lower() for e in found] == [e.pair.lower() for e in found] == ["7", "true"]
    for cell, message in (
        ("", "names no file"),
        ("sub", "there is no file sub in"),
        ("2.png", "there is no file 2.png in"),
    ):
        (tmp_path / "t.csv").write_text(f'file,text\n"{cell}",words\n')
        raises(f"row 2.*{message}", lambda: images.read(tmp_path / "t.csv", Data()))
    (tmp_path / "v.csv.png").write_bytes(RAW["PNG"])  # no table
    assert len(images.read(tmp_path / "v.csv.png", Data())) == 1
    (tmp_path / "words.txt").write_text("words")
    raises(
        "words.txt is no table, folder, zip or tar of images",
        lambda: images.read(tmp_path / "words.txt", Data()),
    )
    raises(
        "files=.*words.txt is no folder or archive",
        lambda: images.read(tmp_path / "t.csv", Data(files=str(tmp_path / "words.txt"))),
    )
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")  # named, not passed over
    broken = next(e for e in images.read(tmp_path) if e.where.endswith("broken.png"))
    raises("broken.png: cannot be read as an image .No such file", lambda: images.pixels(broken, 4, 3))


# --- samples ---
def sounding(x, rate=16000, kind="WAV", depth=None, **how):
    out = io.BytesIO()
    soundfile.write(out, x, rate, format=kind, subtype=depth, **how)
    return out.getvalue()


DEPTHS = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"),
    "AIFF": ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
    "AU": ("PCM_16",),
    "CAF": ("PCM_16",),
}
EXACT = [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths]


@FEW
@given(SEEDS, st.sampled_from(EXACT), st.integers(1, 8), st.integers(1, 3000))
def test_samples_of_a_file_are_those_of_soundfile(tmp_path_factory, seed, written, channels, count):
    """All formats and depths, one to eight channels, which are averaged; of a path, its name and its bytes
    alike."""
    kind, depth = written
    channels = min(channels, 2) if kind in ("MP3",) or depth in ("IMA_ADPCM", "OPUS", "VORBIS") else channels
    raw = sounding(np.random.default_rng(seed).uniform(-0.5, 0.5, (count, channels)), 16000, kind, depth)
    want = soundfile.read(io.BytesIO(raw), always_2d=True)[0].mean(1)
    found = audio.samples(raw)
    assert found.dtype == torch.float32 and found.ndim == 1 and found.is_contiguous()
    np.testing.assert_allclose(found, want, atol=1e-6)
    path = tmp_path_factory.mktemp("sound") / "wrong.wav"
    path.write_bytes(raw)
    assert audio.samples(path).equal(found) and audio.samples(str(path)).equal(found)


@FEW
@given(SEEDS, st.sampled_from([1, 2, 3, 4]), st.integers(1, 8), st.integers(1, 50))
def test_whole_numbers_are_divided_by_their_full_scale(seed, size, channels, count):
    """WAV of 8 (without a sign), 16, 24, 32 bits as Python's own module writes it; and arrays of them."""
    r = np.random.default_rng(seed)
    x = r.integers(-(2 ** (8 * size - 1)), 2 ** (8 * size - 1), (count, channels))
    x[0, 0] = -(2 ** (8 * size - 1))
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setparams((channels, size, 16000, 0, "NONE", ""))
        shift = 128 if size == 1 else 0
        w.writeframes(b"".join(int(v + shift).to_bytes(size, "little", signed=size > 1) for v in x.flat))
    want = (x / 2 ** (8 * size - 1)).mean(1)
    np.testing.assert_allclose(audio.samples(out.getvalue()), want, atol=1e-6)
    if size != 3 and (channels == 1 or count > channels):
        y = x.astype(f"i{size}")
        np.testing.assert_allclose(audio.samples(y), want, atol=1e-6)
        np.testing.assert_allclose(audio.samples(torch.from_numpy(y)), want, atol=1e-6)
        np.testing.assert_allclose(audio.samples(y.astype(f">i{size}")), want, atol=1e-6)
    if size == 1 and (channels == 1 or count > channels):
        np.testing.assert_allclose(audio.samples((x + 128).astype(np.uint8)), want, atol=1e-6)


def test_arrays_are_floats_or_refused():
    x = np.linspace(-1.5, 1.5, 100)
    weights = torch.tensor(x, dtype=torch.bfloat16, requires_grad=True)
    for array in (
        x,
        x.astype(np.float32),
        x.astype(np.float16),
        x[None],
        x[:, None],
        np.stack([x, x], 1),
        torch.tensor(x),
        weights,
    ):
        np.testing.assert_allclose(audio.samples(array), x, atol=4e-3)
    given = x.astype(np.float32)
    audio.samples(given)[:] = 0
    assert given[0] == -1.5  # what is read is another's no more
    for array, message in (
        (np.zeros(0), "holds no sound: there are 0 samples"),
        (np.zeros((2, 160)), r"not \(2, 160\); of \(channels, samples\) give x.T, of a batch one row"),
        (np.zeros((4, 4)), r"not \(4, 4\)"),
        (np.zeros((160, 9)), r"up to 8 channels\), not \(160, 9\)"),
        (np.zeros((1, 2, 160)), r"not \(1, 2, 160\)"),
        (np.zeros(()), r"not \(\)"),
        (np.zeros(9, np.int64), "full scale of int64 is not known; give floats, int16"),
        (np.zeros(9, np.uint16), "full scale of uint16"),
        (np.zeros(9, bool), "full scale of bool"),
        (np.zeros(9, complex), "full scale of complex128"),
        (np.full(9, np.nan), "not numbers, or infinite, the first at 0.000 s"),
        (np.array([0.0] * 8000 + [np.inf]), "infinite, the first at 0.500 s"),
        (np.full(9, 1e300), "infinite"),
        (np.full(9, 32767.0), "reach 32,767, and full scale is 1; divide them by .*of 16 bits 32768"),
    ):  # fmt: skip
        raises(f"^take 3: .*{message}", lambda array=array: audio.samples(array, "take 3"))


@FEW
@given(
    st.integers(8000, 192_000) | st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000, 192_000]),
    st.floats(0, 1),
    st.integers(1, 3),
)
def test_a_sine_of_any_rate_is_the_same_sine_at_16_khz(rate, share, channels):
    """Its frequency, amplitude and phase to 1 part in 500 (-54 dB), away from the ends; its length to a
    sample."""
    pitch = 50 + share * (min(7000, 0.43 * rate) - 50)
    count = int(0.4 * rate)
    x = 0.8 * np.sin(2 * np.pi * pitch * np.arange(count) / rate)
    found = audio.samples(sounding(np.stack([x] * channels, 1), rate, depth="FLOAT")).numpy()
    assert abs(len(found) - count * 16000 / rate) <= 1
    want = 0.8 * np.sin(2 * np.pi * pitch * np.arange(len(found)) / 16000)
    assert np.abs(found - want)[800:-800].max() < 0.8 / 500


@FEW
@given(st.integers(22_050, 192_000), st.floats(0, 1))
def test_what_16_khz_cannot_hold_is_not_folded_down(rate, share):
    """A sine above 8 kHz is gone: under -80 dB. Taking every so many samples would leave all of it, lower."""
    pitch = 8300 + share * (0.49 * rate - 8300)
    x = np.sin(2 * np.pi * pitch * np.arange(int(0.4 * rate)) / rate)
    assert np.abs(audio.samples(sounding(x, rate, depth="FLOAT")).numpy())[800:-800].max() < 1e-4


def test_floats_beyond_full_scale_are_kept_and_impossible_ones_refused():
    x = np.array([0.5, -1.7, 3.0, 31.0], np.float32)
    assert audio.samples(sounding(x, depth="FLOAT")).numpy().tolist() == x.tolist()
    for y, message in (
        (np.nan, "not numbers, or infinite, the first at 0.250"),
        (np.inf, "infinite"),
        (-32768, "reach 32,768"),
    ):
        x = np.zeros(8000, np.float32)
        x[4000:] = y
        raises(f"^x: .*{message}", lambda x=x: audio.samples(sounding(x, depth="FLOAT"), "x"))


SOUNDS = {k: sounding(np.random.default_rng(3).uniform(-0.3, 0.3, 4000), 16000, *k) for k in EXACT}


@FEW
@given(st.sampled_from(list(SOUNDS)), st.floats(0, 1, exclude_max=True))
def test_a_sound_that_is_cut_off_is_refused(written, share):
    """libsndfile reads what is left of WAV, AIFF, AU, CAF and MP3 and says nothing. An MP3 may lack its last
    frame, which is not seen."""
    whole = SOUNDS[written]
    raw = whole[: int(share * len(whole))]
    try:
        found = audio.samples(raw, "x")
    except DataError as e:
        assert str(e).startswith("x: ") and "0x" not in str(e) and len(str(e)) < 300
    else:
        assert len(found) > len(audio.samples(whole)) - (1152 + 1 if written[0] == "MP3" else 1)


@FEW
@given(st.sampled_from(list(SOUNDS)), st.data())
def test_damaged_bytes_are_a_sound_or_a_sentence(written, data):
    raw = bytearray(SOUNDS[written])
    for at in data.draw(st.lists(st.integers(0, min(len(raw), 300) - 1), min_size=1, max_size=4)):
        raw[at] ^= data.draw(st.integers(1, 255))
    try:
        assert audio.samples(bytes(raw), "x").isfinite().all()
    except DataError as e:
        assert str(e).startswith("x: ") and "\n" not in str(e)


@FEW
@given(SEEDS, st.sampled_from([8000, 22050, 44100]), st.sampled_from(["CONSTANT", "VARIABLE", "AVERAGE"]))
def test_whole_mp3s_are_never_refused(seed, rate, mode):
    r = np.random.default_rng(seed)
    x = r.normal(0, 0.1, int(r.integers(1, rate // 2)))
    raw = sounding(x, rate, "MP3", bitrate_mode=mode, compression_level=float(r.random()))
    for behind in (b"", b"TAG" + bytes(125), bytes(500)):
        assert abs(len(audio.samples(raw + behind)) / 16000 - len(x) / rate) <= 3 * 1152 / rate


def loud_and_quiet(*levels):
    """(an MP3 of variable bit rate, where its second frame begins: the first says how many there are)"""
    noise = np.random.default_rng(0).normal(0, 0.1, 80_000)
    raw = sounding(np.concatenate([level * noise for level in levels]), 16000, "MP3", bitrate_mode="VARIABLE")
    return raw, raw.index(raw[:2], 9)


def test_an_mp3_that_does_not_know_its_length_is_read_whole_or_refused():
    """libsndfile guesses it by the size of the first frame: too long, all is read; too short, the rest would
    be missing."""
    raw, first = loud_and_quiet(0, 1)
    assert b"Xing" in raw[:first]
    whole, found = audio.samples(raw), audio.samples(raw[first:])
    assert 0 <= len(found) - len(whole) < 2 * 1152  # and what the encoder put around it
    tagged = b"ID3\4\0\0\0\0\1\0" + bytes(128) + raw  # a tag of 128 bytes before it
    assert audio.samples(tagged).equal(whole)
    half = tagged[: len(tagged) // 2]
    raises("it is cut off: it says it holds 160,000 samples", lambda: audio.samples(half))
    raw, first = loud_and_quiet(1, 0.01)
    raises("bytes of sound lie behind", lambda: audio.samples(raw[first:]))


def test_sounds_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    whole = SOUNDS["WAV", "PCM_16"]
    at = whole.index(b"fmt ") + 12
    rated = lambda rate: whole[:at] + struct.pack("<I", rate) + whole[at + 4 :]
    mp3, first = loud_and_quiet(1, 0.01)
    flac = bytearray(SOUNDS["FLAC", "PCM_16"])
    flac[21:26] = bytes([flac[21] | 15, 255, 255, 255, 255])  # 2^36 - 1 samples
    (tmp_path / "zero.wav").touch()
    for source, message in (
        (b"", "cannot be read as a sound .it is empty: 0 bytes"),
        (tmp_path / "zero.wav", "cannot be read as a sound .it is empty: 0 bytes"),
        (tmp_path / "gone.wav", "No such file"),
        (tmp_path, "Is a directory"),
        (b"words, words", "cannot be read as a sound .Format not recognised"),
        (rated(1), "its rate is 1 Hz; 1,000 to 768,000 Hz are read"),
        (rated(2**31 - 1), "its rate is 2,147,483,647 Hz"),
        (bytes(flac), "says that it holds 68,719,476,735 samples of 1 channels, over 1,000,000,000"),
        (whole[:-100], "is cut off: it says it holds 8000 bytes of sound, and 7900 are there"),
        (mp3 + mp3, "bytes of sound lie behind the length it says it has; save it anew"),
        (mp3[first:], "bytes of sound lie behind"),
        (sounding(np.ones(3), 192_000), "is too short: 3 samples at 192,000 Hz"),
        (sounding(np.zeros(0)), "holds no sound: there are 0 samples"),
        ([0.0, 0.5], "not list"),
    ):  # fmt: skip
        raises(f"^take 3: .*{message}", lambda source=source: audio.samples(source, "take 3"))


def test_what_was_written_to_a_pipe_is_whole():
    """Its header does not know how long it is."""
    whole = SOUNDS["WAV", "PCM_16"]
    at = whole.index(b"data") + 4
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        raw = whole[:4] + struct.pack("<I", size) + whole[8:at] + struct.pack("<I", size) + whole[at + 4 :]
        assert audio.samples(raw).equal(audio.samples(whole))


# --- transcripts ---
def test_transcripts_of_folders_and_archives(tmp_path, monkeypatch, capsys):
    """A class a folder, in a folder and in an archive with or without one around all; capitals; a .txt beside
    a file that is named from where one is."""
    folder = tmp_path / "a"
    for name in ("yes/1.WAV", "no/1.wav", "no/deep/2_3.flac", "__MACOSX/yes/._1.wav", "no/._1.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SOUNDS["WAV", "PCM_16"])
    for root in (folder, tmp_path):
        for archive in packed_all(tmp_path, root) if root == folder else []:
            assert [e.label for e in audio.read(Data(), archive, "train")] == ["no", "deep", "yes"]
    with zipfile.ZipFile(tmp_path / "around.zip", "w") as z:
        for p in folder.rglob("*.*"):
            z.write(p, f"set/{p.relative_to(folder)}")
    assert [e.label for e in audio.read(Data(), tmp_path / "around.zip", "train")] == ["no", "deep", "yes"]
    assert [e.label for e in audio.read(Data(), folder, "train")] == ["no", "deep", "yes"]
    (folder / "no/1.txt").write_bytes("\ufeffno, thank you\n".encode())
    assert [e.label for e in audio.read(Data(), folder, "train")] == ["no, thank you", "deep", "yes"]
    monkeypatch.chdir(folder)
    for source in ("no/1.wav", folder / "no/1.wav"):
        assert [e.label for e in audio.read(Data(), source, "train")] == ["no, thank you"]
    (folder / "no/1.txt").write_bytes(b"na\xefve")
    raises("no/1.txt is not UTF-8: byte 0xef at offset 2", lambda: audio.read(Data(), folder, "train"))
    assert audio.read(Data(errors="replace"), folder, "train")[0].label == "na\ufffdve"
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as z:
        for name in ("recordings/4_jackson_0.wav", "recordings/5_theo_1.wav"):
            z.writestr(name, SOUNDS["WAV", "PCM_16"])
    assert [e.label for e in audio.read(Data(), tmp_path / "same.zip", "train")] == ["4", "5"]


def test_a_real_archive_of_sounds(shared):
    """FSDD: 8 kHz, 16 bits; against Python's own reader, at the samples that both rates have."""
    with zipfile.ZipFile(shared / "speech_fsdd/recordings.zip") as z:
        names = [n for n in sorted(z.namelist()) if n.endswith(".wav")][::600]
        for name in names:
            raw = z.read(name)
            with wave.open(io.BytesIO(raw)) as w:
                x = np.frombuffer(w.readframes(w.getnframes()), "<i2") / 32768
            found = audio.samples(raw).numpy()
            assert len(found) == 2 * len(x)
            assert np.abs(found[::2] - x)[200:-200].max() < 0.02 * np.abs(x).max()
