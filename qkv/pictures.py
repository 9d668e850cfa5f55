"""Pictures of numbers, as PNG files."""

from pathlib import Path


def curves(path, lines, *, x, y, title="", log=""):
    """lines: {name: [(x, y) or (x, y, spread)]}; log: which of "xy" are logarithmic. Returns the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
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
    path = Path(path)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
