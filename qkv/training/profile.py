"""Where the time of a run goes."""

import contextlib
import time

import torch

from ..models.account import Flops

FIRST, LAST = 2, 5  # steps whose operations are looked at one by one


class Profile:
    """Times the phases of the steps; looks at the operations of a few of them, and counts the FLOPs of one.

    The first steps warm up and do not count. It waits for a GPU at every phase, so the run itself is a little slower.
    """

    def __init__(self, device):
        self.cuda, self.phases, self.step, self.steps, self.tokens = device.type == "cuda", {}, 0, 0, 0
        self.flops, self.flop_tokens, self.operations, self._looking = 0, 0, [], None

    @contextlib.contextmanager
    def __call__(self, phase):
        began = time.perf_counter()
        yield
        if self.cuda:
            torch.cuda.synchronize()
        if self.step > LAST:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began

    @contextlib.contextmanager
    def one(self, tokens):
        """Around a step that reads `tokens` tokens."""
        self.step += 1
        if self.step > LAST:
            self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        if self.step == FIRST:
            with Flops() as counter:
                yield
            self.flops, self.flop_tokens = counter.get_total_flops(), tokens
        elif FIRST < self.step < LAST:
            from torch.profiler import ProfilerActivity, profile

            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
            with profile(activities=kinds) as seen:
                yield
            self.operations.append(seen.key_averages())
        else:
            yield

    def report(self, peak, kind):
        """Lines of text. peak: FLOPs a second that the machine reaches in a product of that kind."""
        if not self.steps:
            return [f"--profile needs more than {LAST} steps; this run had {self.step}"]
        whole = sum(self.phases.values())
        out = [f"where the time went ({self.steps} steps, {1000 * whole / self.steps:,.1f} ms a step, {self.tokens / whole:,.0f} tokens/s)"]
        for phase, spent in sorted(self.phases.items(), key=lambda p: -p[1]):
            out.append(f"  {phase:<18} {1000 * spent / self.steps:9.2f} ms {100 * spent / whole:5.1f} %  {'█' * round(40 * spent / whole)}")
        total = {}
        for seen in self.operations:
            for op in seen:
                took = op.self_device_time_total if self.cuda else op.self_cpu_time_total
                total[op.key] = total.get(op.key, 0.0) + took
        if total:
            everything = sum(total.values())
            out.append("the operations that took most")
            for name, took in sorted(total.items(), key=lambda t: -t[1])[:10]:
                out.append(f"  {name[:38]:<38} {100 * took / everything:5.1f} %")
        if self.flops and peak:
            rate = self.flops / self.flop_tokens * self.tokens / whole
            out.append(f"{self.flops / self.flop_tokens / 1e6:,.3g} MFLOPs a token, {rate / 1e9:,.1f} GFLOP/s: {100 * rate / peak:.0f} % "
                       f"of the {peak / 1e9:,.0f} GFLOP/s that this machine reaches in a {kind} product (MFU)")  # fmt: skip
        return out


class NoProfile:
    """Times nothing."""

    def __call__(self, phase):
        return contextlib.nullcontext()

    def one(self, tokens):
        return contextlib.nullcontext()
