"""Decisions: trajectories in, windows of them, and acting by what is asked for."""

import numpy as np
import pytest
import torch

from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import Data, trajectories
from qkv.data.text import DataError
from qkv.data.trajectories import Trajectory
from qkv.training import folder


def corridor(path, discrete=True, count=60):
    """Episodes of a walk: action 1 goes right and earns 1, action 0 earns nothing; good and bad walkers, five steps or more."""
    r, found = np.random.default_rng(0), []
    for i in range(count):
        good, T = i % 2, int(r.integers(5, 12))
        states = np.stack([np.arange(T), np.full(T, 3.0)], 1).astype(np.float32)  # the second number is constant
        actions = np.full(T, good) if discrete else np.full((T, 1), 0.8 * good - 0.4)
        found.append(Trajectory(states, actions, np.full(T, float(good), np.float32)))
    trajectories.save(path, found)
    return path


def test_trajectories_are_kept_as_they_were(tmp_path):
    found = trajectories.collect("CartPole-v1", "random", 3)
    trajectories.save(tmp_path / "a.npz", found)
    again = trajectories.load(tmp_path / "a.npz")
    assert len(again) == 3 and all(
        np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions) and a.total == b.total for a, b in zip(found, again)
    )
    assert found[0].to_go()[0] == found[0].total == len(found[0].rewards) and found[0].to_go()[-1] == 1
    same = trajectories.collect("CartPole-v1", "random", 3)
    assert all(np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions) for a, b in zip(found, same))  # by the seed


@pytest.mark.parametrize("policy, least, most", [("scripted", 490, 500), ("random", 10, 60), ("mixed", 60, 400), ("learned", 20, 300)])
def test_policies_are_as_good_as_they_are_said_to_be(policy, least, most):
    found = trajectories.collect("CartPole-v1", policy, 60)
    assert least <= np.mean([t.total for t in found]) <= most
    if policy == "learned":
        assert np.mean([t.total for t in found[40:]]) > np.mean([t.total for t in found[:20]])


def test_continuous_actions_keep_their_bounds():
    for t in trajectories.collect("Pendulum-v1", "learned", 2):
        assert t.actions.shape == (200, 1) and np.abs(t.actions).max() <= 2.0


FAULTS = {
    "no array actions": lambda a: a.pop("actions"),
    "do not belong together": lambda a: a.update(rewards=a["rewards"][:-1]),
    "ends to 3": lambda a: a.update(ends=np.array([3])),
    "states, step 4 holds something that is no number": lambda a: a["states"].__setitem__((4, 0), np.nan),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_a_file_are_named(message, tmp_path):
    with np.load(corridor(tmp_path / "x.npz")) as z:
        arrays = {n: z[n].copy() for n in z.files}
    FAULTS[message](arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        trajectories.load(tmp_path / "bad.npz")


def test_environments_that_are_not_read_are_named(tmp_path, capsys):
    assert main(["train", "decision-nano", "env=CartPole-v9"]) == 2 and "data.env=CartPole-v9" in capsys.readouterr().err
    assert main(["train", "decision-nano", "env=Blackjack-v1"]) == 2 and "states are Tuple" in capsys.readouterr().err
    assert (
        main(["train", "decision-nano", "env=Acrobot-v1", "policy=scripted"]) == 2 and "no rule for Acrobot-v1" in capsys.readouterr().err
    )
    assert main(["train", "decision-nano", "policy=clever"]) == 2 and "is not one of learned" in capsys.readouterr().err
    assert main(["train", "decision-nano", "env=Pendulum-v1", "episodes=2", "discrete=true"]) == 2
    assert "model.discrete=True: the examples ask for discrete=False" in capsys.readouterr().err
    path = corridor(tmp_path / "x.npz")
    assert (
        main(["train", "decision-nano", f"data={path}", "env=CartPole-v1"]) == 2
        and "are not those of CartPole-v1" in capsys.readouterr().err
    )
    corridor(tmp_path / "c.npz", discrete=False)
    assert main(["train", "decision-nano", f"data={tmp_path / 'c.npz'}", "discrete=true"]) == 2


def task_for(path, **more):
    cfg = Data(source=str(path), env=None)
    kind = objectives.TASKS["decide"]
    found = kind.read(cfg, cfg.source, "train")
    model = models.preset("decision-nano", length=12, dim=16, layers=1, heads=2, dropout=0.0, attn_dropout=0.0, **kind.shape(found) | more)
    return kind(model), found


def test_windows_hold_what_was_and_what_is_still_earned(tmp_path):
    task, found = task_for(corridor(tmp_path / "x.npz"))
    cfg = task.config
    assert (cfg.states, cfg.actions, cfg.discrete, cfg.episode, cfg.target, cfg.deviation[1]) == (
        2,
        2,
        True,
        11,
        11.0,
        1.0,
    ) and task.metric == "right"
    whole = task.encode(found)
    assert sum(len(range(i["start"], min(i["start"] + 4, len(i["to_go"])))) for i in whole) == sum(len(e.text.rewards) for e in found)
    batch = task.pairs([whole[0], whole[-1]], None)
    t = found[0].text
    real = batch.inputs["attention_mask"][0].bool()
    assert batch.inputs["returns_to_go"][0, real, 0].tolist() == pytest.approx([r / cfg.scale for r in t.to_go()[: int(real.sum())]])
    assert batch.inputs["timesteps"][1].max() == len(found[-1].text.rewards) - 1 and batch.count == int(
        batch.inputs["attention_mask"].sum()
    )
    back = batch.inputs["states"][0, real] * torch.tensor(cfg.deviation) + torch.tensor(cfg.mean)
    torch.testing.assert_close(back, torch.from_numpy(t.states[: len(back)]))
    drawn = task.encode(found, training=True)
    r = np.random.default_rng(0)
    times = torch.cat([task.pairs(drawn, r).inputs["timesteps"][:, 0] for _ in range(20)])
    assert set(times.tolist()) == set(range(11))


@pytest.mark.parametrize("discrete", [True, False])
def test_what_is_asked_for_decides(discrete, tmp_path, capsys):
    """Half of the walkers are bad. Told what to earn, the model says what each kind does; without it, it cannot know at the first step."""
    path, right = corridor(tmp_path / "x.npz", discrete), {}
    for returns in ("true", "false"):
        words = [f"data={path}", f"returns={returns}", "length=12", "dim=32", "layers=1", "heads=2", "dropout=0", "attn_dropout=0", "steps=120", "lr=1e-2", "warmup=5",
                 "eval_every=60", "threads=1"]  # fmt: skip
        assert main(["train", "decision-nano", *words]) == 0
        run = folder.find("last")
        model = models.load(sorted((run / "checkpoints").iterdir())[-1])
        task = objectives.make_task("decide", model.config, None, 0)
        states = task.seen(np.array([[[0.0, 3.0]]]))
        said = [
            model(
                states,
                torch.zeros(1, 1, model.config.actions),
                torch.tensor([[[g / model.config.scale]]]),
                torch.zeros(1, 1, dtype=torch.long),
            )["action_preds"][0, 0]
            for g in (0.0, 9.0)
        ]
        right[returns] = [s.argmax().item() if discrete else s.item() > 0 for s in said]
        off = [abs(s.item() - w) for s, w in zip(said, (-0.4, 0.4))] if not discrete else []
        assert returns == "false" or all(o < 0.15 for o in off)
    assert right["true"] == [0, 1] and right["false"][0] == right["false"][1]
    capsys.readouterr()
    assert main(["eval", str(run)]) == 0 and ("right" if discrete else "near") in capsys.readouterr().out


def test_acting_takes_off_what_was_earned(tmp_path, monkeypatch):
    """A model that says 1 while anything is still to be earned earns what it was asked for and then stops."""

    class Env:
        class action_space:
            n, start = 2, 0

        def reset(self, seed=None):
            self.t = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.array([self.t, 3.0], np.float32), float(action), self.t == 9, False, {}

        def close(self):
            pass

    task, _ = task_for(corridor(tmp_path / "x.npz"))
    monkeypatch.setattr(trajectories, "make", lambda name: Env())

    def model(states, actions, to_go, times):
        assert states.shape[1] <= 4 and (times[0] == torch.arange(int(times[0, 0]), int(times[0, -1]) + 1)).all()
        wish = (to_go > 1e-6).float()
        return {"action_preds": torch.cat([1 - wish, wish], -1)}

    assert (
        task.act(model, 5, 3).tolist() == [5, 5, 5] and task.act(model, 0, 2).tolist() == [0, 0] and task.act(model, 99, 1).tolist() == [9]
    )


def test_cartpole_is_learnt_from_what_a_beginner_did(tmp_path, capsys):
    """The main way, small: a learner's trajectories, most of them bad, are collected once; the model acts better than they did, and worse where less is asked for."""
    words = [
        "env=CartPole-v1",
        "episodes=150",
        "steps=300",
        "eval_every=100",
        "threads=1",
        "dropout=0",
        "attn_dropout=0",
        "task=decide(episodes=6)",
    ]
    assert main(["train", "decision-nano", *words]) == 0
    run = folder.find("last")
    held = [m["valid_return"] for m in folder.read_metrics(run / "metrics.jsonl") if "valid_return" in m]
    mean = np.mean([t.total for t in trajectories.read(Data(env="CartPole-v1", episodes=150))])
    assert mean < 100 and max(held) > 1.5 * mean
    capsys.readouterr()
    assert main(["eval", str(run), "task=decide(episodes=4, target=15)", f"picture={tmp_path / 'r.png'}"]) == 0
    said = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[:5]}
    assert said["return"] < 0.7 * max(held) and (tmp_path / "r.png").stat().st_size > 5000
