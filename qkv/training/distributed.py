"""One process, or many under torchrun: the same calls. Ranks agree on every decision, so that none waits for another."""

import contextlib
import os

import torch
import torch.distributed as dist


def active():
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if active() else 0


def world():
    return dist.get_world_size() if active() else 1


def start():
    """Joins the other ranks where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not active():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")


def finish():
    """Leaves together: without this, teardown in a different order can abort a rank."""
    if active():
        barrier()
        dist.destroy_process_group()


def barrier():
    if active():
        dist.barrier()


def _device():
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def total(value):
    """The sum of a number over ranks."""
    if not active():
        return value
    t = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(t)
    return type(value)(t.item())


def agree(value):
    """Rank 0's answer, on every rank."""
    if not active():
        return bool(value)
    t = torch.tensor(int(value), device=_device())
    dist.broadcast(t, 0)
    return bool(t.item())


def any(value):
    """True where it is true on one rank at least."""
    return bool(total(int(value)))


def wrap(model):
    """The model whose gradients are averaged over ranks."""
    return torch.nn.parallel.DistributedDataParallel(model) if active() else model


def last(wrapped, is_last):
    """Gradients are exchanged in a step's last pass only."""
    return wrapped.no_sync() if active() and not is_last else contextlib.nullcontext()
