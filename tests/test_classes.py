"""One battery over every published class there is: its gradients, its copies, its files, a step of training, and where the reference library
has it, the reference's numbers. A class that stands in no row of `families.SMALL` fails."""

import copy
import inspect
import json

import pytest
import torch
from families import SMALL, small_class
from safetensors.torch import load_file
from topologies import answer, example

import qkv
from qkv import models

CLASSES = pytest.mark.parametrize("cls", sorted(models.CLASSES))
UNREAD = {  # parameters that published files hold and that no pass reads
    "wav2vec2-conformer": ("unread.",),
    "tabnet": ("spare.",),
    "decision_transformer": ("embed.token.",),
    "idefics": ("picture.last.",),
    "switch_transformers": (".experts.",),  # one to which no token of so short a text was sent
}


def made(cls, dtype=torch.float64):
    """A small model of a class, moved so that nothing stands at 0 or 1."""
    torch.manual_seed(1)
    model = qkv.create(cls, **small_class(cls, models.CLASSES[cls].name)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def given_to(cls, model):
    """Arguments by their published names."""
    back = {ours: theirs for theirs, ours in models.CLASSES[cls].arguments.items()}
    given = example(model)
    if cls == "IdeficsForVisionText2Text":  # added tokens too
        given["input_ids"][:, 1] = model.config.words.vocab
    return {back.get(k, k): v for k, v in given.items()}


def mixture(out):
    """A number that every number of the output moves."""
    return sum((v * torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v)).mean() for v in out.values() if v.requires_grad)


def test_every_family_has_a_small_config():
    assert set(SMALL) == set(models.FAMILIES)


@CLASSES
def test_every_parameter_gets_a_gradient(cls):
    model = made(cls).train()
    family = models.CLASSES[cls].name
    mixture(answer(model, given_to(cls, model))).backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)]
    assert [n for n in still if not any(word in n for word in UNREAD.get(family, ()))] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@CLASSES
def test_a_step_down_the_gradient_lowers_the_loss(cls):
    model = made(cls).train()
    given = given_to(cls, model)
    before = mixture(answer(model, given))
    before.backward()
    square = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(1e-5 / square * p.grad)
    after = mixture(answer(model, given))
    assert before.item() - after.item() == pytest.approx(1e-5, rel=0.05)


@CLASSES
def test_copies_files_and_pickled_states_say_the_same(cls, tmp_path):
    model = made(cls, torch.float32)
    given = given_to(cls, model)
    wanted = answer(model, given)
    assert wanted
    qkv.save(model, tmp_path / "a")
    again = qkv.load(tmp_path / "a")
    assert again.config == model.config and again.published == cls and not again.training
    assert json.loads((tmp_path / "a/config.json").read_text())["architectures"] == [cls]
    qkv.save(again, tmp_path / "b")
    a, b = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    for other in (again, copy.deepcopy(model)):
        for name, value in answer(other, given).items():
            assert torch.equal(value, wanted[name]), name


@CLASSES
def test_training_mode_draws_and_evaluation_does_not(cls):
    """Where the published config drops anything, two passes of training differ; two of evaluation never do."""
    model = made(cls).train()
    given = given_to(cls, model)
    a, b = (answer(model.eval(), given, seed) for seed in (7, 7))
    assert all(torch.equal(a[k], b[k]) for k in a)
    drops = max((m.p for m in model.modules() if hasattr(m, "p") and isinstance(m.p, float)), default=0.0)
    drops = max([drops, *(m.dropout for m in model.modules() if isinstance(getattr(m, "dropout", None), float))])
    if not drops:
        return
    model.train()
    a, b = (answer(model, given, seed) for seed in (7, 8))
    assert any(not torch.equal(a[k], b[k]) for k in a)


THEIRS = {"hidden": "last_hidden_state", "pooled": "pooler_output", "encoder_hidden": "encoder_last_hidden_state"}
UNCACHED = ("FSMTForConditionalGeneration", "FSMTModel")  # with its cache, the reference has no causal mask
OTHERWISE = {"FSMTModel": "hidden",  # the reference gives scores of the vocabulary under this name
             "DecisionTransformerModel": "hidden"}  # three tokens a step in a row there, (B, T, 3, D) here  # fmt: skip


def reference_classes():
    import transformers

    return [cls for cls in sorted(models.CLASSES) if hasattr(transformers, cls)]


@pytest.mark.parametrize("cls", reference_classes())
def test_equals_the_reference(cls, tmp_path):
    """At random weights, in float32 as the reference keeps parts of itself, every tensor that both name."""
    import transformers

    model = made(cls, torch.float32)
    qkv.save(model, tmp_path / "m")
    theirs = getattr(transformers, cls).from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    given = given_to(cls, model)
    takes = inspect.signature(theirs.forward).parameters
    more = {"use_cache": False} if cls in UNCACHED else {}
    with torch.no_grad():
        torch.manual_seed(7)
        said = theirs(**{k: v for k, v in given.items() if k in takes}, **more)
        torch.manual_seed(7)
        ours = model(**given)
    compared = []
    for name, value in ours.items():
        other = said.get(THEIRS.get(name, name))
        if name != OTHERWISE.get(cls) and torch.is_tensor(value) and value.is_floating_point() and torch.is_tensor(other):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            compared.append(name)
    assert compared
