"""Trajectories in: what was seen, done and earned in episodes of a gymnasium environment, collected here or read from a file.

Dims: E episodes, N steps of all of them, S numbers of a state, A numbers of an action.
"""

import contextlib
import os
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..words import track
from .batches import rng
from .shards import cache_folder
from .text import DataError

POLICIES = ("learned", "mixed", "scripted", "random")


@dataclass(frozen=True)
class Trajectory:
    """states (T, S), actions (T,) numbers of actions or (T, A), rewards (T,) of one episode."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    @property
    def total(self):
        return float(self.rewards.sum())

    def to_go(self):
        """(T,) what is still earned from each step on."""
        return self.rewards[::-1].cumsum()[::-1].copy()


def read(cfg):
    """[Trajectory] of a Data config: of the file data.source, or collected in data.env by data.policy, once, and kept in the cache. Raises DataError."""
    source = Path(str(cfg.source)).expanduser()
    if source.suffix.lower() == ".npz":
        return load(source)
    if cfg.env is None:
        raise DataError(
            f"data.source={cfg.source} is no .npz of trajectories; give one, or an environment to collect them in: env=CartPole-v1"
        )
    name = f"{cfg.env.replace('/', '-')}-{cfg.policy}-{cfg.episodes}.npz"
    path = cache_folder() / "trajectories" / name
    if not path.exists():
        found = collect(cfg.env, cfg.policy, cfg.episodes, progress=lambda x: track(x, "collecting"))
        save(path, found)
        totals = [t.total for t in found]
        print(
            f"{len(found)} episodes of {cfg.env} by policy={cfg.policy}: mean return {np.mean(totals):.1f}, best {max(totals):.1f}, in {path}",
            file=sys.stderr,
        )
    return load(path)


def load(path: str | Path) -> list[Trajectory]:
    """[Trajectory] of an .npz file: states (N, S), actions (N,) of numbers or (N, A), rewards (N,), and ends
    (E,), the step behind each episode. Raises DataError for a damaged file, arrays that do not belong
    together, and values that are no numbers."""
    try:
        z = np.load(path, allow_pickle=False)
        if not isinstance(z, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array")
        with z:
            parts = {n: z[n] for n in z.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path} cannot be read as trajectories ({str(e)[:100]})") from None
    missing = [n for n in ("states", "actions", "rewards", "ends") if n not in parts]
    if missing:
        what = "trajectories are states (N, S), actions (N,) or (N, A), rewards (N,), ends (E,)"
        raise DataError(f"{path} has no array {', '.join(missing)}; {what}")
    s, a, r, ends = (parts[n] for n in ("states", "actions", "rewards", "ends"))
    if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
        raise DataError(f"{path}: ends are whole numbers in a row, not {ends.dtype} of shape {ends.shape}")
    ends = ends.astype(np.int64)  # of unsigned numbers a difference is never below 0
    last = ends[-1] if len(ends) else 0
    fits = s.ndim == 2 and a.ndim in (1, 2) and r.ndim == 1 and len(s) == len(a) == len(r) == last
    if not fits or not last or (np.diff(ends, prepend=0) < 1).any():
        shapes = f"states {s.shape}, actions {a.shape}, rewards {r.shape} and ends to {last}"
        raise DataError(f"{path}: {shapes} do not belong together")
    for n, x in (("states", s), ("actions", a), ("rewards", r)):
        if not (np.issubdtype(x.dtype, np.number) and np.isrealobj(x)) and x.dtype != bool:
            raise DataError(f"{path}: {n} are {x.dtype}, and numbers are wanted")
    discrete = a.ndim == 1 and not np.issubdtype(a.dtype, np.floating)
    with np.errstate(over="ignore"):
        s, r, a = s.astype(np.float32), r.astype(np.float32), a.astype(np.int64 if discrete else np.float32)
    a = a[:, None] if a.ndim == 1 and not discrete else a
    for n, x in (("states", s), ("actions", a), ("rewards", r)):
        odd = np.nonzero(~np.isfinite(x).reshape(len(x), -1).all(1))[0]
        if len(odd):
            raise DataError(f"{path}: {n}, step {odd[0]} holds something that is no number, or too large")
    if discrete and (a < 0).any():
        step = int((a < 0).argmax())
        raise DataError(f"{path}: actions, step {step} is {a[step]}; actions are numbered from 0 on")
    return [Trajectory(*t) for t in zip(*(np.split(x, ends[:-1]) for x in (s, a, r)))]


def save(path, found):
    """Writes [Trajectory] in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    some = path.with_name(f".{os.getpid()}-{path.name}")
    join = lambda n: np.concatenate([getattr(t, n) for t in found])
    np.savez_compressed(
        some, states=join("states"), actions=join("actions"), rewards=join("rewards"), ends=np.cumsum([len(t.rewards) for t in found])
    )
    os.replace(some, path)


def make(env):
    """An environment. Raises DataError for one that is not there, or whose states or actions are of a kind that is not read."""
    try:
        import gymnasium
    except ImportError:
        raise DataError("environments need gymnasium: pip install 'qkv[decisions]'") from None
    try:
        made = gymnasium.make(env)
    except Exception as e:
        raise DataError(f"data.env={env}: {str(e).splitlines()[0][:200]}") from None
    box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete
    if not isinstance(made.observation_space, box) or len(made.observation_space.shape) != 1:
        raise DataError(f"data.env={env}: its states are {made.observation_space}; states in a row of numbers are read")
    if not isinstance(made.action_space, (box, discrete)) or (isinstance(made.action_space, box) and len(made.action_space.shape) != 1):
        raise DataError(f"data.env={env}: its actions are {made.action_space}; one of several actions, or a row of numbers, is said")
    return made


def is_discrete(env):
    return hasattr(env.action_space, "n")


def taken(env, action):
    """What the environment is given: the number of an action from its first, or numbers within their bounds."""
    space = env.action_space
    return int(action) + int(space.start) if is_discrete(env) else np.clip(np.asarray(action, space.dtype), space.low, space.high)


def play(env, act, seed):
    """The Trajectory of one episode; act: state -> action."""
    states, actions, rewards = [], [], []
    state, _ = env.reset(seed=int(seed))
    over = False
    while not over:
        action = act(state)
        states.append(np.asarray(state, np.float32))
        actions.append(action if is_discrete(env) else taken(env, action))
        state, reward, ended, cut, _ = env.step(taken(env, action))
        rewards.append(reward)
        over = ended or cut
    return Trajectory(np.stack(states), np.array(actions), np.array(rewards, np.float32))


SCRIPTS = {  # what somebody who knows the environment would do
    "CartPole-v1": lambda s: int(0.2 * s[0] + 0.6 * s[1] + 10.0 * s[2] + 2.0 * s[3] > 0),
    "MountainCar-v0": lambda s: 2 if s[1] >= 0 else 0,
    "MountainCarContinuous-v0": lambda s: np.array([1.0 if s[1] >= 0 else -1.0]),
    "Pendulum-v1": lambda s: np.array([-8 * np.arctan2(s[1], s[0]) - 2 * s[2] if s[0] > 0.7 else 2.0 * np.sign(s[2] or 1.0)]),
}


def collect(name, policy="learned", episodes=400, seed=0, progress=lambda x: x):
    """[Trajectory] of so many episodes. policy: random; scripted, by a rule for that environment; mixed, by that rule with a share of
    random actions that is drawn for every episode, a large one more often; learned, all that a linear policy does while it is learning (cross-entropy method, Szita and Lőrincz, 2006)."""
    if policy not in POLICIES:
        raise DataError(f"data.policy={policy!r} is not one of {', '.join(POLICIES)}")
    if policy in ("scripted", "mixed") and name not in SCRIPTS:
        raise DataError(
            f"data.policy={policy}: there is no rule for {name} (there is for {', '.join(SCRIPTS)}); use policy=learned or random"
        )
    env, r = make(name), rng(seed, 6)
    with contextlib.closing(env):
        env.action_space.seed(int(seed))
        anything = lambda s: env.action_space.sample() - (env.action_space.start if is_discrete(env) else 0)
        if policy == "learned":
            return learned(env, episodes, r, seed, progress)
        out = []
        for i in progress(range(episodes)):
            noise = {"random": 1.0, "scripted": 0.0, "mixed": float(r.random()) ** 0.5}[policy]
            out.append(play(env, lambda s, noise=noise: anything(s) if r.random() < noise else SCRIPTS[name](s), 1000 * seed + i))
        return out


def learned(env, episodes, r, seed, progress, crowd=20, best=5):
    """The episodes of crowds of linear policies, each drawn around the best ones of the crowd before."""
    S = env.observation_space.shape[0]
    A = env.action_space.n if is_discrete(env) else env.action_space.shape[0]
    mean, spread, out, tried = np.zeros((A, S + 1)), np.ones((A, S + 1)), [], []
    middle, half = (
        (0, 0)
        if is_discrete(env)
        else ((env.action_space.high + env.action_space.low) / 2, (env.action_space.high - env.action_space.low) / 2)
    )
    for i in progress(range(episodes)):
        w = mean + spread * r.standard_normal(mean.shape)
        say = lambda s, w=w: w @ np.append(s, 1.0)
        act = (lambda s, say=say: int(say(s).argmax())) if is_discrete(env) else (lambda s, say=say: middle + half * np.tanh(say(s)))
        out.append(play(env, act, 1000 * seed + i))
        tried.append((out[-1].total, i, w))
        if len(tried) == crowd:
            top = np.stack([w for *_, w in sorted(tried, key=lambda t: -t[0])[:best]])
            mean, spread, tried = top.mean(0), top.std(0) + 0.05, []
    return out
