"""qkv bench"""

HELP = """
qkv bench [threads=N]

Measures what this machine can do, in about twenty seconds: matrix products in float32 (torch's own, and oneDNN's, which
`precision=fast` takes where it is accurate), bfloat16 and int8, memory, and whether the compiled kernels of `qkv generate` and
`qkv embed` can be built. MFU in `qkv train --profile` is a share of these products.
"""


def run(words, verb):
    from .main import options

    plain, given, _ = options(words, ("threads",))
    if plain:
        raise ValueError(f"'{plain[0]}' is not understood: qkv bench takes threads=N alone")
    import torch
    from rich.console import Console
    from rich.table import Table

    from .. import native, runtime
    from ..training import machine

    most = runtime.cores()
    asked = given.get("threads", most)
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= most:
        raise ValueError(f"threads={asked}: this process may use 1 to {most}")
    runtime.keep_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = [1, asked] if asked > 1 and device == "cpu" else [asked]
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.backends.cpu.get_cpu_capability()}, {most} cores"
    table = Table("product of 1024", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts), "error", title=name, title_justify="left")
    rows = (
        ("float32", "float32", "highest"),
        ("float32 by oneDNN", "medium", "medium"),
        ("bfloat16", "bfloat16", None),
        ("int8", "int8", None),
    )
    for label, kind, how in rows:
        cells = []
        for n in counts:
            torch.set_num_threads(n)
            rate = machine.peak(kind, device)
            cells.append("not native here" if rate is None else f"{rate / 1e9:,.0f} GFLOP/s")
        error = machine.error_of(how, device) if how else None
        accurate = "" if error is None else f"{error:.1e}" + ("" if error <= machine.ACCURATE else ", too much for float32")
        table.add_row(label, *cells, accurate)
    cells = []
    for n in counts:
        torch.set_num_threads(n)
        cells.append(f"{machine.bandwidth(device) / 1e9:,.1f} GB/s")
    table.add_row("memory, read", *cells, "")
    Console().print(table)
    can, why = native.available()
    print("compiled kernels: " + ("ready" if can else f"not here ({why}); the plain path is taken"))
    print(f"precision=auto trains in {'bfloat16' if machine.fast_bf16(device) else 'float32'} here")
