"""Several values of a key, and what one of them costs in a process of its own."""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time


def split(value):
    """'softmax,performer(features=64, redraw=0)' -> its parts, by the commas outside of brackets and quotes."""
    parts, depth, quoted = [""], 0, ""
    for c in value:
        quoted = "" if c == quoted else c if not quoted and c in "\"'" else quoted
        depth += (c in "([{") - (c in ")]}") if not quoted else 0
        if c == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def variants(words):
    """(words with one value, {key: [values]}, [{key: value}] of all that the others combine to). Raises ValueError for an empty value."""
    single, several = [], {}
    for word in words:
        key, _, value = word.partition("=")
        parts = split(value)
        if "" in parts and len(parts) > 1:
            raise ValueError(f"{word}: a value between two commas is empty")
        if len(parts) > 1:
            several[key] = list(dict.fromkeys(parts))
        else:
            single.append(word)
    return single, several, [dict(zip(several, values)) for values in itertools.product(*several.values())]


def named(variant):
    return ", ".join(f"{k}={v}" for k, v in variant.items()) or "as it is"


def whole_numbers(key, value):
    """'512,1024' -> [512, 1024]. Raises ValueError."""
    out = []
    for part in split(str(value)):
        if not part.replace("_", "").isdigit() or int(part) < 1:
            raise ValueError(f"{key}={value}: must be whole numbers of at least 1, with commas between")
        out.append(int(part))
    return out


def read(fields):
    """{field: text of a command line} as values."""
    from ..training.recipe import read_value

    return {k: read_value(v) for k, v in fields.items()}


def child(words, env=()):
    """(output, peak MiB or None) of `qkv WORDS` in a process of its own. Its peak is read while it runs: what the system reports at its
    end begins with the memory of this process. Raises ValueError with its last line where it fails."""
    peak = 0
    with tempfile.TemporaryFile() as out:
        p = subprocess.Popen([sys.executable, "-m", "qkv", *words], stdout=out, stderr=subprocess.STDOUT, env=os.environ | dict(env))
        try:
            while p.poll() is None:
                peak = max(peak, _kib("VmHWM", p.pid) or 0)
                time.sleep(0.05)
        except BaseException:
            p.terminate()
            p.wait()
            raise
        out.seek(0)
        text = out.read().decode(errors="replace").strip()
    if p.returncode:
        raise ValueError(text.splitlines()[-1] if text else f"ended with {p.returncode}")
    return text, peak / 1024 or None


def measured(what, fields, length, batch, threads):
    """{seconds, mib} of one forward and backward pass, by `qkv cost ... --point` in a process of its own."""
    words = ["cost", what, *(f"{k}={v}" for k, v in fields.items()), f"length={length}", f"batch={batch}", f"threads={threads}", "--point"]
    out, _ = child(words)
    return json.loads(out.splitlines()[-1])


def point(cfg, length, batch):
    """What `measured` prints, in this process: the least of three passes, and memory above that of the weights."""
    import torch

    from .. import models

    torch.manual_seed(0)
    model = models.build(cfg).train()
    if hasattr(cfg, "patch"):
        inputs = {"pixel_values": torch.randn(batch, cfg.channels, cfg.image, cfg.image)}
        short = inputs
    else:
        ids = torch.randint(0, cfg.vocab, (batch, length))
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if hasattr(model, "encode") else {})
        short = {k: v[:, :8] for k, v in inputs.items()}
        if cfg.output == "lm":
            inputs, short = (some | {"labels": some["input_ids"].flatten()} for some in (inputs, short))

    def once(inputs):
        out = model(**inputs)
        (out["loss"] if "loss" in out else out["hidden"].sum()).backward()
        model.zero_grad()

    once(short)  # libraries are loaded
    before, best = _kib("VmRSS"), math.inf
    if before is not None:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak begins here
    for i in range(3):
        start = time.perf_counter()
        once(inputs)
        best = min(best, time.perf_counter() - start)
        if i == 0 and before is not None:
            mib = (_kib("VmHWM") - before) / 1024
        if best > 20:
            break
    return {"seconds": best, "mib": mib if before is not None else None}


def _kib(field, pid="self"):
    """Memory of a process as the kernel of Linux counts it; None elsewhere."""
    try:
        with open(f"/proc/{pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(field))
    except (OSError, StopIteration):
        return None
