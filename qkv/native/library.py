"""The compiled kernels: built once on this machine by its own C++ compiler, kept in the cache folder, loaded by ctypes."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math")


class Step(ctypes.Structure):
    """One operation; the fields are explained in kernels.cpp."""

    _fields_ = (
        [(n, ctypes.c_int32) for n in ("kind", "in_", "out", "aux", "n", "k", "act", "packing", "groups", "layer", "offset", "flags")]
        + [(n, ctypes.c_float) for n in ("eps", "scale")]
        + [(n, ctypes.c_void_p) for n in ("w", "b", "s", "t")]
    )


class Pass(ctypes.Structure):
    """The rows of tokens that a program is run on."""

    _fields_ = (
        [(n, ctypes.c_int32) for n in ("tokens", "wanted", "capacity", "memory")]
        + [(n, ctypes.c_void_p) for n in ("id", "number", "row", "position", "length", "want", "table", "source", "source_length")]
        + [(n, ctypes.c_void_p) for n in ("registers", "caches", "memories")]
        + [("narrow", ctypes.c_int32)]
    )


class NoLibrary(RuntimeError):
    """The kernels cannot be built or loaded here; the message says why."""


@functools.cache
def load(*defines):
    """The library. defines: options for the compiler, as the tests use them for the layouts of other processors. Raises NoLibrary
    where QKV_NATIVE=0, there is no C++ compiler, or it fails."""
    if os.environ.get("QKV_NATIVE") == "0":
        raise NoLibrary("QKV_NATIVE=0")
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
    if compiler is None or not shutil.which(compiler.split()[0]):
        raise NoLibrary(f"there is no C++ compiler ({compiler or 'g++, c++, clang++'})")
    flags = [*FLAGS, *defines]
    path = _folder() / f"kernels-{_key(compiler, flags)}.so"
    if not path.exists():
        _build(compiler, flags, path)
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as e:
        raise NoLibrary(f"{path} cannot be loaded: {e}") from None
    if lib.qkv_step_size() != ctypes.sizeof(Step) or lib.qkv_pass_size() != ctypes.sizeof(Pass):
        raise NoLibrary("the compiler lays structures out in another way than Python")
    lib.qkv_team.restype = ctypes.c_void_p
    lib.qkv_disband.argtypes = [ctypes.c_void_p]
    lib.qkv_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    lib.qkv_run.restype = None
    return lib


def short():
    """The library whose int8 products take activations of 7 or 8 bits: half as many instructions where the processor has no product of
    its own for it (AVX2), the usual library elsewhere."""
    lib = load()
    return lib if lib.qkv_unit() == 4 else load("-DQKV_UNIT=4")


def available():
    """(True, "") or (False, why not)."""
    try:
        load()
    except NoLibrary as e:
        return False, str(e)
    return True, ""


def _folder():
    return Path(os.environ.get("QKV_CACHE") or Path.home() / ".cache" / "qkv") / "native"


def _key(compiler, flags):
    """What the compiled file depends on: source, compiler, flags and this processor's instructions."""
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True).stdout
    try:
        cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        cpu = ""
    return hashlib.sha256("\n".join([SOURCE.read_text(), version, cpu, *flags]).encode()).hexdigest()[:16]


def _build(compiler, flags, path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            made = Path(aside) / path.name
            done = subprocess.run([*compiler.split(), *flags, str(SOURCE), "-o", str(made)], capture_output=True, text=True)
            if done.returncode:
                raise NoLibrary(f"{compiler} failed: {next(iter(done.stderr.strip().splitlines()), '')[:300]}")
            os.replace(made, path)  # whole or not at all: two processes may build at once
    except OSError as e:
        raise NoLibrary(f"{path} cannot be written: {e.strerror}") from None


class Team:
    """Threads that run programs. They belong to whoever made them."""

    def __init__(self, threads, lib=None):
        self.threads, self._lib = threads, lib or load()
        self._team = self._lib.qkv_team(threads)

    def run(self, steps, count, made):
        self._lib.qkv_run(self._team, steps, count, ctypes.byref(made))

    def __del__(self):
        if getattr(self, "_team", None):
            self._lib.qkv_disband(self._team)
