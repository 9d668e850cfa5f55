"""Decisions: the next action, given what shall still be earned (Decision Transformer, Chen et al., 2021), or without it (behaviour cloning).

Dims: B windows or episodes, T steps, S numbers of a state, A numbers of an action or actions there are.
"""

import contextlib
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from ..data import trajectories
from ..data.batches import Batch
from ..data.examples import Example
from ..data.text import DataError
from ..models.loss import IGNORE
from .base import Loss, with_auxiliary
from .tasks import Task


class Decide(Task):
    """Trajectories of data.env (a gymnasium environment), or data=FILE.npz; every tenth is held out. Judged by acting: `episodes` episodes of the environment, in each of which `target` is
    asked for (the best return of the data by default), with the likeliest action; return is the mean of what was earned. Without an environment: by how often the
    held-out action is said, or how near it is."""

    outputs = {"TrajectoryDecoder": "actions"}
    kind, parts = "decide", True

    def __init__(self, config, target=None, episodes=10, seed=10_000):
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: must be at least 1")
        if config.mean is None:
            raise ValueError("the model does not know its data (mean, deviation): train it with task=decide")
        if config.steps < 1:
            raise ValueError(f"length={config.length}: a step is three tokens")
        self.config, self.episodes, self.seed = config, episodes, seed
        self.target = config.target if target is None else target
        self.metric = "return" if config.environment else "right" if config.discrete else "near"

    @classmethod
    def read(cls, cfg, source, part):
        found = trajectories.read(dataclasses.replace(cfg, source=source))
        if len(found) < 2:
            raise DataError(f"data.source={source} holds {len(found)} trajectories; some are held out, so at least 2 are needed")
        if cfg.env:  # what it is tried in must be what was seen
            env = trajectories.make(cfg.env)
            with contextlib.closing(env):
                S, discrete = env.observation_space.shape[0], trajectories.is_discrete(env)
            if (found[0].states.shape[1], found[0].actions.ndim == 1) != (S, discrete):
                raise DataError(
                    f"data.source={source}: states of {found[0].states.shape[1]} numbers and {'numbers of' if found[0].actions.ndim == 1 else 'continuous'} actions are not those of {cfg.env}"
                )
        held = [i for i in range(len(found)) if i % 10 == 9] or [len(found) - 1]
        keep = {"train": [i for i in range(len(found)) if i not in set(held)], "valid": held, "test": held}[part]
        return [Example(found[i], None, None, f"{cfg.env or source}, episode {i + 1}", {"env": cfg.env}) for i in keep]

    @classmethod
    def shape(cls, examples):
        """What the data decide of a model: sizes, what numbers are scaled by, and the return that is asked for when nothing is said."""
        found = [e.text for e in examples]
        states, first = np.concatenate([t.states for t in found]), found[0]
        discrete, env = first.actions.ndim == 1, examples[0].more["env"]
        totals = [t.total for t in found]
        count = 1 + max(int(t.actions.max()) for t in found) if discrete else first.actions.shape[1]
        most = max(len(t.rewards) for t in found)
        if env:
            made = trajectories.make(env)
            with contextlib.closing(made):
                count = int(made.action_space.n) if discrete else count
                most = max(most, made.spec.max_episode_steps or 0)
        deviation = states.std(0)
        numbers = lambda x: tuple(float(v) for v in x)
        return {"states": states.shape[1], "actions": count, "discrete": discrete, "episode": most, "target": max(totals), "environment": env,
                "scale": max(1e-3, max(map(abs, totals)) / 5), "mean": numbers(states.mean(0)), "deviation": numbers(np.where(deviation < 1e-6, 1, deviation))}  # fmt: skip

    def encode(self, examples, training=False):
        cfg, out = self.config, []
        for e in examples:
            t = e.text
            if (t.actions.ndim == 1) != cfg.discrete:
                raise DataError(
                    f"{e.where}: its actions are {'one of several' if t.actions.ndim == 1 else 'numbers'}, and the model has discrete={str(cfg.discrete).lower()}"
                )
            if len(t.rewards) > cfg.episode:
                raise DataError(f"{e.where}: has {len(t.rewards)} steps and the model counts to {cfg.episode} (episode)")
            item = {"ids": range(cfg.steps), "states": self.seen(t.states), "actions": torch.from_numpy(np.asarray(t.actions)), "to_go": torch.from_numpy(t.to_go()) / cfg.scale,
                    "wanted": t.total, "where": e.where}  # fmt: skip
            T = len(t.rewards)
            # a long episode stands there as often as it has windows: every step is drawn as often as every other (section 4)
            out += [item] * -(-T // cfg.steps) if training else [item | {"start": s} for s in range(0, T, cfg.steps)]
        return out

    def seen(self, states):
        """States with mean 0 and deviation 1."""
        mean, deviation = (torch.tensor(x) for x in (self.config.mean, self.config.deviation))
        return (torch.as_tensor(np.asarray(states), dtype=torch.float32) - mean) / deviation

    def done(self, actions):
        """Actions as vectors: (..., A)."""
        return F.one_hot(actions.long(), self.config.actions).float() if self.config.discrete else actions.float()

    def pairs(self, items, rng):
        cfg, K = self.config, self.config.steps
        B = len(items)
        states, actions = torch.zeros(B, K, cfg.states), torch.zeros(B, K, cfg.actions)
        to_go, times, mask = torch.zeros(B, K, 1), torch.zeros(B, K, dtype=torch.long), torch.zeros(B, K, dtype=torch.long)
        for b, i in enumerate(items):
            T = len(i["to_go"])
            a = i["start"] if rng is None else int(rng.integers(0, T))
            n = min(K, T - a)
            states[b, :n], actions[b, :n], to_go[b, :n, 0] = (
                i["states"][a : a + n],
                self.done(i["actions"][a : a + n]),
                i["to_go"][a : a + n],
            )
            times[b, :n], mask[b, :n] = torch.arange(a, a + n), 1
        inputs = {"states": states, "actions": actions, "returns_to_go": to_go, "timesteps": times, "attention_mask": mask}
        count = int(mask.sum())
        return Batch(inputs, actions.masked_fill(mask[..., None] == 0, IGNORE).flatten(0, 1), count, count)

    def wrong(self, out, batch):
        """((N,) loss of each step that is there, (N,) was the action right, or how far off) of what the model says."""
        there = batch.labels[:, 0] != IGNORE
        said, wanted = out["action_preds"].flatten(0, 1)[there].float(), batch.labels[there]
        if self.config.discrete:
            return F.cross_entropy(said, wanted.argmax(-1), reduction="none"), (said.argmax(-1) == wanted.argmax(-1)).float()
        off = (said - wanted).square().mean(-1)
        return off, off

    def loss(self, model, batch):
        out = model(**batch.inputs)
        value = self.wrong(out, batch)[0].sum()
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach()})

    @torch.no_grad()
    def judge_all(self, model, items, device="cpu"):
        """({loss, and right or near, of every step once; with an environment return, its spread, least},
        nothing is said of a window)."""
        batches = [self.pairs(items[i : i + 64], None).to(device) for i in range(0, len(items), 64)]
        parts = [self.wrong(model(**b.inputs), b) for b in batches]
        loss, right = (torch.cat(p).mean().item() for p in zip(*parts))
        held = {"loss": loss} | ({"right": right} if self.config.discrete else {"near": -right})
        if self.config.environment:
            earned = self.act(model, self.target, device=device)
            found = {"return": earned.mean(), "spread": earned.std(), "least": earned.min()}
            held |= {name: float(value) for name, value in found.items()}
        return held, [""] * len(items)

    @torch.no_grad()
    def act(self, model, target, episodes=None, device="cpu"):
        """What is earned in each of so many episodes, all played at once, when `target` is asked for; after each step what was earned is taken off (section 3)."""
        cfg, K, B = self.config, self.config.steps, episodes or self.episodes
        envs = [trajectories.make(cfg.environment) for _ in range(B)]
        with contextlib.ExitStack() as stack:
            for env in envs:
                stack.enter_context(contextlib.closing(env))
            now = np.stack([env.reset(seed=self.seed + i)[0] for i, env in enumerate(envs)])
            states, actions, to_go = [], [], []
            left, earned, going = np.full(B, float(target)), np.zeros(B), list(range(B))
            for t in range(cfg.episode):
                states.append(self.seen(now))
                actions.append(torch.zeros(B, cfg.actions))
                to_go.append(torch.tensor(left, dtype=torch.float32)[:, None] / cfg.scale)
                last = slice(max(0, t + 1 - K), t + 1)
                window = lambda x, last=last: torch.stack(x[last], 1)[going].to(device)
                times = torch.arange(last.start, t + 1, device=device).expand(len(going), -1)
                said = model(window(states), window(actions), window(to_go), times)["action_preds"][:, -1].float().cpu()
                chosen = said.argmax(-1) if cfg.discrete else said
                actions[-1][going] = self.done(chosen)
                still = []
                for i, action in zip(going, chosen.numpy()):
                    now[i], reward, ended, cut, _ = envs[i].step(trajectories.taken(envs[i], action))
                    left[i], earned[i] = left[i] - reward, earned[i] + reward
                    still += [] if ended or cut else [i]
                going = still
                if not going:
                    break
        return earned

    def picture(self, model, items, path, count=8):
        """Returns that were asked for, and what was earned."""
        from .. import pictures

        if not self.config.environment:
            raise ValueError("picture=: what is earned is seen in an environment, and the data name none (env=)")
        low = min(i["wanted"] for i in items)
        asked = np.linspace(low, self.config.target, count)
        earned = [self.act(model.eval(), a) for a in asked]
        lines = {
            "earned (mean and deviation)": [(a, e.mean(), e.std()) for a, e in zip(asked, earned)],
            "asked for": [(a, a) for a in asked],
        }
        return pictures.curves(path, lines, x="return that is asked for", y="return", title=self.config.environment)

    def show(self, model, run):
        if not self.config.environment:
            return f"{len(run.valid.pairs)} windows of held-out trajectories"
        was, half = model.training, self.config.target / 2
        low, high = (self.act(model.eval(), a, 4, run.device).mean() for a in (half, self.target))
        model.train(was)
        return f"asked for {half:g}: {low:.1f}; asked for {self.target:g}: {high:.1f}"
