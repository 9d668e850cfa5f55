"""Are the tests able to fail? Mutants of the code (by mutmut), one at a time, against the tests that run through the function.

    make mutants                              # of the files that changed since the last commit
    make mutants WHOLE="core generation"      # of packages, SAMPLE=40 mutants of each, drawn by seed
    .venv/bin/mutmut show NAME                # what a survivor changes

Prints a row a package (killed, survived, reached by no test, score), and writes the survivors to mutants/survivors.txt.
"""

import argparse
import collections
import fnmatch
import json
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATUS = {0: "survived", 5: "untested", 33: "untested", 36: "timeout", 24: "timeout", 152: "timeout", 255: "timeout", -24: "timeout"}
MUTMUT = str(Path(sys.executable).with_name("mutmut"))


def package(name):
    """qkv.core.masks.x_whole__mutmut_1 -> core"""
    return name.split(".")[1]


def mutants():
    """{name: exit code of its tests, or None} of every mutant there is."""
    found = {}
    for meta in sorted((ROOT / "mutants").rglob("*.meta")):
        found |= json.loads(meta.read_text())["exit_code_by_key"]
    return found


def changed(base):
    """Patterns of the mutants of the files that changed since a commit."""
    out = subprocess.run(["git", "diff", "--name-only", base, "--", "qkv"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [f.removesuffix(".py").removesuffix("/__init__").replace("/", ".") + ".x*" for f in out.split() if f.endswith(".py")]


def shortened(seconds):
    """Keeps of each function's tests the quickest, as many as run in so many seconds: a survivor must not take the whole suite's time. What
    they miss is counted as survived, so the score is a lower bound."""
    path = ROOT / "mutants" / "mutmut-stats.json"
    stats = json.loads(path.read_text())
    took = stats["duration_by_test"]
    for name, tests in stats["tests_by_mangled_function_name"].items():
        kept, total = [], 0.0
        for test in sorted(tests, key=lambda t: (took.get(t, 0.0), t)):
            total += took.get(test, 0.0) + 0.02
            if kept and total > seconds:
                break
            kept.append(test)
        stats["tests_by_mangled_function_name"][name] = kept
    path.write_text(json.dumps(stats))


def run(names, children):
    subprocess.run(
        [MUTMUT, "run", "--max-children", str(children), *names], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="packages of qkv, such as core; by default the files that changed")
    parser.add_argument("--base", default="HEAD~1", help="the commit since which files changed")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each package at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests a mutant at most")
    parser.add_argument("--children", type=int, default=os.cpu_count())
    given = parser.parse_args()
    patterns = [f"qkv.{p}.*" for p in given.packages] or changed(given.base)
    if not patterns:
        return print("no file of qkv changed")
    if not (ROOT / "mutants" / "mutmut-stats.json").exists():
        run(["qkv.core.masks.x_whole__mutmut_1"], given.children)  # makes the mutants, and sees which test runs through which function
    shortened(given.seconds)
    there = sorted(n for n in mutants() if any(fnmatch.fnmatch(n, p) for p in patterns))
    drawn = []
    for name in sorted(set(map(package, there))):
        own = [n for n in there if package(n) == name]
        drawn += random.Random(given.seed).sample(own, min(given.sample, len(own)))
    if not drawn:
        return print("nothing in those files is mutated: " + ", ".join(patterns))
    run(drawn, given.children)
    codes = mutants()
    rows = collections.defaultdict(collections.Counter)
    for name in drawn:
        rows[package(name)][STATUS.get(codes[name], "killed")] += 1
    print(f"{'package':12} {'mutants':>8} {'killed':>7} {'survived':>9} {'untested':>9} {'score':>7}")
    for name, row in rows.items():
        killed, every = row["killed"] + row["timeout"], sum(row.values())
        print(f"{name:12} {every:8} {killed:7} {row['survived']:9} {row['untested']:9} {100 * killed / every:6.1f} %")
    left = [n for n in drawn if STATUS.get(codes[n]) in ("survived", "untested")]
    with open(ROOT / "mutants" / "survivors.txt", "w") as f:
        for name in left:
            f.write(subprocess.run([MUTMUT, "show", name], cwd=ROOT, capture_output=True, text=True).stdout + "\n")
    print(f"{len(left)} survivors are in mutants/survivors.txt")


if __name__ == "__main__":
    main()
