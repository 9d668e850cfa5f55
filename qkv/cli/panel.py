"""The live view of a training run: progress, the curve of the loss, held-out loss, speed and a sample. Plain lines without a terminal."""

import math
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values, width):
    """The values as a line of bars, `width` at most, each the mean of its share."""
    if not values:
        return ""
    width = min(width, len(values))
    means = []
    for i in range(width):
        part = values[i * len(values) // width : (i + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(BARS[min(7, int((m - low) / span * 7.99))] for m in means)


def brief(text, width, lines=6):
    """The beginning of a text without empty lines, at most `lines` lines of `width`."""
    kept = [line[:width] for line in text.splitlines() if line.strip()]
    return "\n".join(kept[:lines])


def clock(seconds):
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Show:
    """What the loop reports to: see training.loop.train."""

    def __init__(self, where, name, mode=""):
        self.console = Console(stderr=False, highlight=False)
        self.live = None
        self.mode = mode or ("" if self.console.is_terminal else "plain")
        self.began, self.kind = time.monotonic(), ""
        self.where, self.name = where, name
        self.losses, self.held, self.text, self.notes = [], [], "", []
        self.now, self.steps, self.seconds, self.first = 0, None, None, 0
        self.tokens = self.elapsed = self.lr = 0
        self.recent = []
        self.last_print = 0.0

    def begin(self, run, steps, seconds, first):
        self.steps, self.seconds, self.first, self.now = steps, seconds, first, first
        params = sum(p.numel() for p in run.model.parameters())
        kind = run.arithmetic
        words = f"{len(run.tokenizer):,} tokens of vocabulary, " if len(run.tokenizer) else ""
        self.kind, threads = type(run.model.config).__name__, _threads()
        if self.mode == "quiet":
            return
        self.console.print(
            f"[bold]{self.name}[/bold]  {params:,} parameters, {words}{kind}, "
            f"{threads} thread{'s' if threads > 1 else ''} on {run.device}\n[dim]run folder: {self.where}[/dim]"
        )
        if not self.mode:
            self.live = Live(self.view(), console=self.console, refresh_per_second=4, transient=False)
            self.live.start()

    def share(self):
        """How much of the run is done, 0 to 1."""
        a = self.now / self.steps if self.steps else 0.0
        b = self.elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(a, b))

    def speed(self):
        if not self.recent:
            return 0.0
        (t0, n0), (t1, n1) = self.recent[0], self.recent[-1]
        if len(self.recent) < 3:
            t0, n0 = self.started, 0
        return (n1 - n0) / max(1e-9, t1 - t0)

    def step(self, step, loss, tokens, elapsed, lr):
        if not self.recent:
            self.started = time.monotonic() - max(1e-3, elapsed)
        self.now, self.tokens, self.elapsed, self.lr = step, tokens, elapsed, lr
        self.losses.append(loss)
        self.recent = [*self.recent[-30:], (time.monotonic(), tokens)]
        if self.live:
            self.live.update(self.view())
        elif self.mode == "plain" and time.monotonic() - self.last_print > 10:
            self.last_print = time.monotonic()
            held = f", held-out {self.held[-1][1]['loss']:.3f}" if self.held else ""
            print(f"step {step}  loss {self.mean():.3f}{held}  {self.speed():,.0f} tokens/s  {clock(elapsed)}", flush=True)

    def mean(self):
        part = [x for x in self.losses[-20:] if math.isfinite(x)]
        return sum(part) / len(part) if part else math.nan

    def evaluated(self, step, held):
        from ..evaluation.loss import described, of_how_many

        self.held.append((step, held))
        if self.mode == "plain":
            print(f"step {step}  held-out loss {held['loss']:.4f}{of_how_many(held)}  {described(held)}", flush=True)

    def sample(self, step, text):
        self.text = text
        if self.mode == "plain":
            print(f"step {step}  sample: {brief(text, 200)}", flush=True)

    def note(self, text):
        self.notes.append(text)
        if not self.live:  # notes are never quiet
            print(f"note: {text}", flush=True)

    def view(self):
        from ..evaluation.loss import figures, of_how_many

        width = max(30, min(self.console.width, 110) - 6)
        left = ""
        share = self.share()
        if 0 < share < 1:
            left = f"  {clock(self.elapsed * (1 - share) / share)} left"
        of = f" of {self.steps}" if self.steps else ""
        bar = Table.grid()  # in a table of its own: a bar ends without a line feed
        bar.add_row(ProgressBar(total=1.0, completed=share, width=width))
        grid = Table.grid(padding=(0, 2))
        grid.add_row("step", f"{self.now:,}{of}", "tokens/s", f"{self.speed():,.0f}")
        grid.add_row("loss", f"[bold]{self.mean():.3f}[/bold]" if self.losses else "-", "time", f"{clock(self.elapsed)}{left}")
        if self.held:
            _, h = self.held[-1]
            bits = f"  ({h['bits_per_byte']:.2f} bits a byte)" if h.get("bits_per_byte") else ""
            name, words = next(iter(figures(h)), ("", ""))
            loss = f"[bold green]{h['loss']:.3f}[/bold green] from {self.held[0][1]['loss']:.3f}{of_how_many(h)}"
            grid.add_row("held out", loss, name, f"{words}{bits}")
        parts = [
            bar,
            grid,
            Text(sparkline([x for x in self.losses if math.isfinite(x)], width), style="cyan"),
        ]
        if self.text:
            parts += [Text("sample", style="dim"), Text(brief(self.text, width), style="italic", overflow="fold")]
        parts += [Text(n, style="yellow") for n in self.notes[-2:]]
        return Panel(Group(*parts), title=f"training {self.name}", width=width + 6)

    def report(self, lines):
        """Where the time went (--profile)."""
        print("\n".join(["", *lines, ""]), flush=True)

    def end(self, interrupted):
        if self.live:
            self.live.update(self.view())
            self.live.stop()
            self.live = None

    def close(self):
        """Gives the terminal back, whatever happened."""
        if self.live:
            self.live.stop()
            self.live = None


def _threads():
    torch = sys.modules["torch"]
    return torch.get_num_threads()
