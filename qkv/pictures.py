"""Pictures of numbers, as PNG files."""

from pathlib import Path


def canvas(width=8, height=5, rows=1, columns=1):
    """(figure, axes) without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def kept(figure, path):
    """The path of a figure that was written there."""
    from matplotlib import pyplot

    path = Path(str(path))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def spectrum(path, frames_FM, words=(), looked=None):
    """A log-mel spectrum (F, M), a frame every 10 ms, with words [(word, start, end)] at their times; looked: (names of tokens, weights (tokens, T), seconds),
    where each token looked in the sound. Returns the path."""
    figure, rows = canvas(
        max(6, min(24, len(frames_FM) / 80)), 3.5 + (0 if looked is None else 0.6 + 0.22 * len(looked[0])), 1 if looked is None else 2, 1
    )
    axes = rows[0, 0]
    axes.imshow(frames_FM.T, origin="lower", aspect="auto", extent=(0, len(frames_FM) / 100, 0, frames_FM.shape[1]), cmap="magma")
    for i, (word, start, end) in enumerate(words):
        axes.axvspan(start, end, color="white" if i % 2 else "cyan", alpha=0.12, linewidth=0)
        axes.axvline(start, color="white", linewidth=0.6)
        axes.text((start + end) / 2, frames_FM.shape[1] * (0.93 - 0.08 * (i % 2)), word, color="white", ha="center", fontsize=9)
    axes.set(xlabel="seconds", ylabel="mel band", xlim=(0, len(frames_FM) / 100))
    if looked is not None:
        names, weights, seconds = looked
        at = rows[1, 0]
        at.imshow(weights, aspect="auto", cmap="viridis", extent=(0, seconds, len(names), 0))
        at.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=8)
        at.set(xlim=axes.get_xlim(), xlabel="seconds", title="where each token looked")
    return kept(figure, path)


def overlays(path, image_HWC, maps):
    """An image (H, W, C) of bytes, and beside it maps {name: (h, w)} laid over it. Returns the path."""
    import numpy as np
    from PIL import Image

    image = np.asarray(image_HWC)
    image = image[..., 0] if image.shape[-1] == 1 else image
    figure, axes = canvas(2.6 * (1 + len(maps)), 2.9, 1, 1 + len(maps))
    axes[0, 0].imshow(image, cmap="gray")
    axes[0, 0].set_title("image", fontsize=9)
    for at, (name, values) in zip(axes[0, 1:], maps.items()):
        values = np.asarray(values, dtype=np.float32)
        values = (values - values.min()) / max(1e-9, float(values.max() - values.min()))
        large = Image.fromarray(values).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        at.imshow(image, cmap="gray")
        at.imshow(np.asarray(large), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
        at.set_title(name, fontsize=9)
    for at in axes.flat:
        at.set_axis_off()
    return kept(figure, path)


def rows(path, pictures, titles):
    """Rows of pictures [[(H, W, C) of bytes]], with a title a column. Returns the path."""
    import numpy as np

    figure, axes = canvas(1.5 * len(titles), 1.5 * len(pictures) + 0.3, len(pictures), len(titles))
    for line, images in zip(axes, pictures):
        for at, image in zip(line, images):
            image = np.asarray(image)
            at.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            at.set_axis_off()
    for at, title in zip(axes[0], titles):
        at.set_title(title, fontsize=9)
    return kept(figure, path)


def fan(path, before, past_TC, after, said_TC, low_TC, high_TC, names):
    """A series and what is foretold of it, with the band that its errors fell into, one line a column, of the first 8. before, after:
    datetimes; the axis has the time zone of the first. Returns the path."""
    import numpy as np

    count = min(8, len(names))
    figure, axes = canvas(9, 1.2 + 2.0 * count, count, 1)
    after = [before[-1], *after]  # the lines go on from the last value, so that a single step is seen, too
    said_TC, low_TC, high_TC = (np.concatenate([past_TC[-1:], x]) for x in (said_TC, low_TC, high_TC))
    for c, at in enumerate(axes[:, 0]):
        at.plot(before, past_TC[:, c], color="tab:gray", label="so far")
        (line,) = at.plot(after, said_TC[:, c], color="tab:blue", label="foretold")
        at.fill_between(after, low_TC[:, c], high_TC[:, c], color=line.get_color(), alpha=0.2, linewidth=0, label="80 % of the errors")
        at.set_ylabel(names[c], fontsize=8)
        at.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8, loc="upper left")
    figure.autofmt_xdate()
    return kept(figure, path)


def drawn(path, lines):
    """Lines (text, true image, drawn image, [(word, map)]), images (H, W, C) of bytes. Returns the path."""
    most = max(len(maps) for *_, maps in lines)
    figure, axes = canvas(1.5 * (2 + most), 1.75 * len(lines), len(lines), 2 + most)
    for line, (text, true, made, maps) in zip(axes, lines):
        for at in line:
            at.set_axis_off()
        line[0].imshow(true)
        line[0].set_title(text[:24], fontsize=7)
        line[1].imshow(made)
        line[1].set_title("drawn", fontsize=7)
        for at, (word, values) in zip(line[2:], maps):
            at.imshow(values, cmap="inferno")
            at.set_title(word, fontsize=7)
    return kept(figure, path)


def matrix(path, values_NM, left, below, title=""):
    """Numbers (N, M) as colours, their rows and columns named. Returns the path."""
    import numpy as np

    values = np.asarray(values_NM)
    figure, axes = canvas(1.5 + 0.42 * values.shape[1] + 1.5, 1.5 + 0.36 * values.shape[0] + 1)
    axes = axes[0, 0]
    drawn = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(below)), below, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(left)), left, fontsize=8)
    axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, shrink=0.7)
    return kept(figure, path)


def masks(path, parts, left, below):
    """Shares from 0 to 1, {title: (N, M)} side by side, their rows and columns named. Returns the path."""
    import numpy as np

    figure, axes = canvas(1.2 + (0.7 + 0.24 * len(below)) * len(parts), 1.4 + 0.2 * len(left), 1, len(parts))
    for n, (at, (title, values)) in enumerate(zip(axes[0], parts.items())):
        at.imshow(np.asarray(values), cmap="magma", aspect="auto", vmin=0, vmax=1)
        at.set_xticks(range(len(below)), below, rotation=90, fontsize=7)
        at.set_yticks(range(len(left)), left if n == 0 else [""] * len(left), fontsize=7)
        at.set_title(title, fontsize=9)
    return kept(figure, path)


def curves(path, lines, *, x, y, title="", log=""):
    """lines: {name: [(x, y) or (x, y, spread)]}; log: which of "xy" are logarithmic. Returns the path."""
    from matplotlib.ticker import ScalarFormatter

    figure, axes = canvas()
    axes = axes[0, 0]
    for name, points in lines.items():
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        (line,) = axes.plot(xs, ys, marker="o" if len(points) < 30 else None, markersize=4, label=name)
        if points and len(points[0]) > 2:
            low, high = ([p[1] + sign * p[2] for p in points] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if "x" in log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    if "y" in log:
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return kept(figure, path)
