"""What torch promises of a module holds for every model, and every fast path equals the plain one.

The plain one is reached from outside: a hook on all modules (torch's own) must make every shortcut step aside.
"""

import contextlib
import copy
import dataclasses
import itertools
import pickle
import re

import pytest
import torch
from topologies import EXAMPLES, answer, example, small
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import qkv
from qkv import models
from qkv.core import CONVOLUTIONS, FEED_FORWARDS, KERNELS, NORMS, PATTERNS, POSITIONS, Attention, Cache
from qkv.models.fronts import FRONTS
from qkv.models.shape import ORDERS, Shape

PRESETS = pytest.mark.parametrize("name", small())
UNCALLED = {  # modules that a forward pass rightly leaves out, and why
    r".*ffn\.f\.experts\.\d+(\..*)?": "an expert to which no token was sent",
    r"judges\..*": "only the losses of drawing ask them",
    r"matcher(\..*)?": "only the losses of drawing ask it",
    r"embed\.token": "a decoder of trajectories reads vectors; published files hold the table",
    "spare": "published files hold it, nothing reads it",
    r"cross(\.[qk]_norm|\.position)?": "run token by token from its parts, as what to look at depends on the state before",
    "words": "its stack is run with the pictures as memory",
}


class Watcher:
    """A hook on every module there is."""

    def __enter__(self):
        self.called = []
        self.handle = register_module_forward_hook(lambda module, given, out: self.called.append(module))
        return self

    def __exit__(self, *_):
        self.handle.remove()


def made(name, training=False, **fields):
    """A preset in float64 with every weight moved, so that nothing stands at 0 or 1."""
    torch.manual_seed(1)
    model = qkv.create(name, **fields).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model.train(training)


def gradients(model, given, only=()):
    """{parameter: gradient} of a fixed mixture of what the model says."""
    model.zero_grad()
    out = {k: v for k, v in answer(model, given).items() if not only or k in only}
    total = sum((v * torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v)).sum() for v in out.values() if v.requires_grad)
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(fast, slow, tolerance=1e-9):
    assert set(fast) == set(slow)
    for name in fast:
        say = lambda m, n=name: f"{n}: {m}"
        torch.testing.assert_close(fast[name], slow[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=say)


def both_ways(model, given, only=(), tolerance=1e-9):
    """Values, and in training gradients, the fast way and with everything watched. only: names of what is compared, by default all."""
    keep = lambda out: {k: v for k, v in out.items() if not only or k in only}
    fast = answer(model, given)
    with Watcher() as seen:
        slow = answer(model, given)
    assert len(seen.called) > 1
    compare(keep(fast), keep(slow), tolerance)
    if model.training:
        fast = gradients(model, given, only)
        with Watcher():
            slow = gradients(model, given, only)
        compare(fast, slow, tolerance)


def test_every_topology_has_an_example():
    assert set(EXAMPLES) == set(models.TOPOLOGIES)
    assert len(small()) >= 40


@PRESETS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fast_paths_equal_the_plain_way(name, training):
    model = made(name, training)
    both_ways(model, example(model))


@PRESETS
def test_every_module_is_called(name):
    """A hook that somebody puts on a part sees what goes through it."""
    model = made(name)
    with Watcher() as seen:
        answer(model, example(model))
    called = set(map(id, seen.called))
    silent = [
        n
        for n, m in model.named_modules()
        if id(m) not in called and type(m).forward is not nn.Module.forward and not any(re.fullmatch(why, n) for why in UNCALLED)
    ]
    assert not silent


@PRESETS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_hook_on_one_module_alone_is_called(name, training):
    """A path that asks some of the modules it leaves out, and not all, would miss one."""
    model, missed = made(name, training), []
    given = example(model)
    with Watcher() as seen:
        answer(model, given)
    called = set(map(id, seen.called))
    first = {}  # of those that are alike, the first
    for n, m in model.named_modules():
        if id(m) in called:
            first.setdefault(re.sub(r"\.\d+\.", ".0.", n), m)
    for n, m in first.items():
        heard = []
        handle = m.register_forward_hook(lambda *_, heard=heard: heard.append(1))
        answer(model, given)
        handle.remove()
        if not heard:
            missed.append(n)
    assert not missed


class Wrapped(nn.Module):
    """What people put around a layer: an adapter, a quantised matrix, a probe."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@PRESETS
def test_any_linear_layer_can_be_replaced(name):
    """By a module that has no weight of its own."""
    model = made(name, True)
    given = example(model)
    with Watcher() as seen:
        before = answer(model, given)
    called = set(map(id, seen.called))
    alike = {}
    for n, m in model.named_modules():
        if type(m) is nn.Linear and id(m) in called:
            alike.setdefault(re.sub(r"\.\d+\.", ".0.", n), n)
    for path in alike.values():
        parent, _, leaf = path.rpartition(".")
        parent, old = model.get_submodule(parent), model.get_submodule(path)
        parent.register_module(leaf, Wrapped(old))
        with Watcher() as seen:
            compare(before, answer(model, given))
        assert old in seen.called, path
        compare(before, answer(model, given))
        gradients(model, given)
        assert old.weight.grad is not None, path
        parent.register_module(leaf, old)


def slots():
    """Every value of every slot in a decoder, an encoder, an encoder-decoder and an encoder of images."""
    bases = ("gpt-nano", "bert-nano", "transformer-nano", "vit-nano")
    needs = {
        "sinusoid2d": "sinusoid2d(width=8)",
        "rope2d": "rope2d(width=8)",
        "linformer": "linformer(rank=4)",
        "bigbird": "bigbird(block=4)",
    }
    for base, (slot, values) in itertools.product(bases, AXES.items()):
        for value in values:
            value = SMALL.get(value, value)
            yield base, slot, value if base == "vit-nano" else needs.get(value, value)


YES = ("true", "false")
SMALL = {"sliding": "causal & sliding(3)", "documents": "causal & documents", "window": "window(3)", "dilated": "dilated(3, 2)",
         "strided": "strided(2)", "block": "block(4)", "summary": "summary(2, 1)", "globals": "globals(2)", "random": "random(2, block=2)"}  # fmt: skip
AXES = {"position": POSITIONS, "input_position": ("none", "learned", "sinusoid"), "kernel": KERNELS, "ffn": FEED_FORWARDS, "order": ORDERS,
        "norm": NORMS, "pattern": PATTERNS, "biases": ("", "q", "qv", "kv", "qkvo"), "kv_heads": ("1",), "head_dim": ("8",), "embed_dim": ("16",),
        "final_norm": YES, "embed_norm": YES, "scaled": YES, "tie": YES, "types": ("2",)}  # fmt: skip
UNHEARD = {"vocab", "dim", "layers", "heads", "length", "hidden",  # sizes, of which every preset has its own
           "init", "init_std", "pad_trains", "dropout", "attn_dropout", "norm_eps",  # how it is trained
           "numbering", "output", "labels", "label_names", "pad", "bos", "eos", "start"}  # what goes in and comes out  # fmt: skip


def test_every_field_of_a_stack_is_tried():
    assert set(AXES) | UNHEARD == {f.name for f in dataclasses.fields(Shape)} and not set(AXES) & UNHEARD


@pytest.mark.parametrize(("base", "slot", "value"), slots())
def test_every_part_in_every_slot_by_every_path(base, slot, value):
    try:
        model = made(base, True, **{slot: value})
    except ValueError as refused:
        assert slot in str(refused) or value.partition("(")[0] in str(refused).lower()
        return
    given = example(model)
    for more in [{}, {"whole": False}] if base == "vit-nano" else [{}]:
        try:
            both_ways(model, given | more, only=("logits",) if more else ())
        except ValueError as refused:  # a length that a kernel is not made for
            assert value.partition("(")[0] in str(refused).lower()
            return
    if base == "vit-nano":
        a, b = answer(model, given | {"whole": False}), answer(model, given)
        torch.testing.assert_close(a["logits"], b["logits"], rtol=1e-9, atol=1e-9)


def test_the_narrow_last_block_is_taken():
    """So that the comparison above compares something."""
    model = made("vit-nano", True)
    given = example(model)
    assert answer(model, given | {"whole": False})["hidden"].shape[1] == 1
    with Watcher():
        assert answer(model, given | {"whole": False})["hidden"].shape[1] > 1


@PRESETS
def test_a_copy_is_on_its_own(name):
    model = made(name)
    given, before = example(model), None
    before = answer(model, given)
    twin = copy.deepcopy(model)
    compare(before, answer(twin, given), 0)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    compare(before, answer(model, given), 0)
    empty = answer(twin, given)
    assert all(v.isfinite().all() for v in empty.values())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    compare(empty, answer(twin, given), 0)


SPOKEN = {  # small configs of the families whose arguments have published names
    "torch-transformer": {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 20},
    "wav2vec2-conformer": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20, "conv_dim": [8, 8],
                           "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
                           "num_conv_pos_embedding_groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", sorted({f.name for f in models.CLASSES.values() if f.arguments}))
def test_a_copy_with_published_arguments_is_on_its_own(family):
    cls = next(c for c, f in models.CLASSES.items() if f.name == family)
    model = qkv.create(cls, **SPOKEN[family]).double().eval()
    back = {ours: theirs for theirs, ours in models.FAMILIES[family].arguments.items()}
    given = {back.get(k, k): v for k, v in example(model).items()}
    assert set(given) & set(models.FAMILIES[family].arguments)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    for name, value in answer(twin, given).items():
        assert value.abs().max() == 0, name
    assert any(v.abs().max() > 0 for v in answer(model, given).values())


@PRESETS
def test_functional_calls_and_pickled_states(name):
    model, other = made(name), made(name)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    given = example(model)
    wanted = answer(other, given)
    torch.manual_seed(7)
    out = torch.func.functional_call(model, dict(other.named_parameters()) | dict(other.named_buffers()), kwargs=given)
    compare({k: out[k] for k in wanted}, wanted, 0)
    model.load_state_dict(pickle.loads(pickle.dumps(other.state_dict())))
    compare(answer(model, given), wanted, 0)
    compare(answer(pickle.loads(pickle.dumps(other)), given), wanted, 0)


def attention_of(model):
    return next(m for m in model.modules() if isinstance(m, Attention))


@pytest.mark.parametrize("name", ["gpt-nano", "bert-nano", "t5-nano", "vit-nano", "linformer-nano", "performer-nano"])
@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward_pre", "put over"])
@pytest.mark.parametrize("part", ["q", "k", "v", "o"])
def test_whoever_looks_at_a_projection_is_called(name, kind, part):
    model, seen = made(name, True), []
    layer = getattr(attention_of(model), part)
    if kind == "forward":
        layer.register_forward_hook(lambda *_: seen.append(1))
    elif kind == "pre":
        layer.register_forward_pre_hook(lambda *_: seen.append(1))
    elif kind == "backward":
        layer.register_full_backward_hook(lambda *_: seen.append(1))
    elif kind == "backward_pre":
        layer.register_full_backward_pre_hook(lambda *_: seen.append(1))
    else:
        inner = layer.forward
        layer.forward = lambda x: (seen.append(1), inner(x))[1]
    gradients(model, example(model))
    assert seen


@pytest.mark.parametrize("name", ["gpt-nano", "bert-nano", "t5-nano", "vit-nano"])
def test_what_is_put_in_place_of_weights_acts(name):
    """Replacing a part, not only hooking it, changes what the model says."""
    model = made(name)
    given = example(model)
    before = answer(model, given)["logits"]
    attention_of(model).kernel.weights = nn.Threshold(0.2, 0.0)
    assert (answer(model, given)["logits"] - before).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["gpt-nano", "bert-nano", "t5-nano", "lstm-nano", "bahdanau-nano", "bert4rec-nano"])
def test_the_head_is_called_where_its_loss_is_asked_for(name):
    model, seen = made(name), []
    given = example(model)
    scores = model(**given)["logits"]
    labels = torch.randint(3, 40, scores.shape[:-1]).flatten()
    wanted = nn.functional.cross_entropy(scores.flatten(0, -2), labels, reduction="sum")
    torch.testing.assert_close(model(**given, labels=labels)["loss"], wanted, rtol=1e-9, atol=1e-9)
    handle = model.head.out.register_forward_hook(lambda m, i, out: (seen.append(1), 2 * out)[1])
    doubled = model(**given, labels=labels)["loss"]
    assert seen
    handle.remove()
    bias = getattr(model.head, "steady", None)
    logits = 2 * scores if bias is None else 2 * (scores - bias) + bias
    wanted = nn.functional.cross_entropy(logits.flatten(0, -2), labels, reduction="sum")
    torch.testing.assert_close(doubled, wanted, rtol=1e-9, atol=1e-9)


def test_a_router_is_called():
    model, seen = made("switch-nano", True), []
    router = next(m for n, m in model.named_modules() if n.endswith("router"))
    router.register_forward_hook(lambda *_: seen.append(1))
    answer(model, example(model))
    assert seen


COMPILED = ("gpt-nano", "bert-nano", "t5-nano")


@pytest.mark.parametrize("name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in small()])
def test_compiled_models_say_the_same(name):
    """Traced by dynamo, run eagerly: what the compiler makes of it is torch's business, that it can be traced is ours."""
    torch._dynamo.reset()
    model = made(name)
    given = example(model)
    wanted = answer(model, given)
    torch.manual_seed(7)
    out = torch.compile(model, backend="eager")(**given)
    compare({k: getattr(out, k) for k in wanted}, wanted)


def test_cross_attention_has_no_common_positions():
    for name, scheme in POSITIONS.items():
        if name == "none":
            continue
        with pytest.raises(ValueError, match="no common positions"):
            Attention(8, 2, cross=True, position=scheme.__new__(scheme))


def test_a_model_knows_its_family():
    """A preset is saved in the layout of the family that it was made by, whoever else could write it."""
    several = 0
    for name, (family, _) in models.presets().items():
        cfg = models.preset(name)
        cls = models.published_class(cfg, family)
        assert family is None or models.CLASSES[cls].name == family, name
        several += family is not None and models.published_class(cfg) is None
    assert several >= 20  # they can be written by two, and without their family they are ours


def test_another_family_that_can_say_the_same_changes_nothing(monkeypatch):
    theirs = models.FAMILIES["gpt2"]
    classes = {"EchoLMHeadModel": theirs.classes["GPT2LMHeadModel"]}
    echo = dataclasses.replace(theirs, name="echo", classes=classes, presets={"echo-nano": theirs.presets["gpt-nano"]})
    for order in ({"echo": echo, **models.FAMILIES}, {**models.FAMILIES, "echo": echo}):
        monkeypatch.setattr(models, "FAMILIES", order)
        monkeypatch.setitem(models.CLASSES, "EchoLMHeadModel", echo)
        assert qkv.create("gpt-nano").published == "GPT2LMHeadModel"
        assert qkv.create("echo-nano").published == "EchoLMHeadModel"
        assert models.adapt(qkv.create("echo-nano"), layers=1).published == "EchoLMHeadModel"
        away = models.adapt(qkv.create("echo-nano"), position="alibi")
        assert away.published is None and models.adapt(away, position="learned").published == "EchoLMHeadModel"
        assert models.build(models.preset("gpt-nano")).published is None


def test_what_a_family_cannot_say_is_named_and_a_fault_of_its_own_is_not_hidden(monkeypatch):
    gpt2 = models.FAMILIES["gpt2"]
    with pytest.raises(models.Unsayable, match="position='alibi'"):
        gpt2.write(models.preset("gpt-nano", position="alibi"), "GPT2LMHeadModel")
    cfg = models.preset("gpt-nano")
    for fault, place in itertools.product((KeyError, TypeError, AttributeError, IndexError), ("after", "before")):

        def broken(raw, cfg, fault=fault):
            raise fault("a mistake in the family's code")

        monkeypatch.setitem(models.FAMILIES, "gpt2", dataclasses.replace(gpt2, **{place: broken}))
        with pytest.raises(fault):
            models.published_class(cfg, "gpt2")


def test_counting_flops_takes_no_other_path():
    """Linformer mixes before it projects, which is cheaper; a counter that put hooks on modules would count the plain way."""
    from torch.utils.flop_counter import FlopCounterMode

    from qkv.models.account import Flops

    model = made("linformer-nano")
    given = example(model)
    with Flops() as fast:
        model(**given)
    with FlopCounterMode(display=False) as plain:
        model(**given)
    assert 0 < fast.get_total_flops() != plain.get_total_flops()
    with Watcher(), Flops() as watched:
        model(**given)
    assert watched.get_total_flops() == plain.get_total_flops()


def inner(cfg):
    """A config, and those in it."""
    yield cfg
    for f in dataclasses.fields(cfg):
        if dataclasses.is_dataclass(part := getattr(cfg, f.name)):
            yield from inner(part)


def test_special_ids_of_presets_lie_in_their_vocabularies():
    seen = 0
    for name in models.presets():
        for cfg in inner(models.preset(name)):
            most = max(cfg.vocab, getattr(cfg, "target_vocab", None) or 0) if hasattr(cfg, "vocab") else 0
            for field in ("pad", "bos", "eos", "start"):
                value = getattr(cfg, field, None)
                for i in value if isinstance(value, tuple) else (value,):
                    assert i is None or 0 <= i < most, f"{name}: {field}={i} of {most}"
                    seen += i is not None
    assert seen > 200


@pytest.mark.parametrize("name", ["gpt2", "t5-small", "bert-nano", "transformer-nano", "lstm-nano", "albert-nano"])
def test_a_tensor_that_two_parts_share_is_shown_once(name, capsys, monkeypatch):
    """The numbers of the leaves add up to the whole, each block as often as it is there."""
    from qkv.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    assert main(["show", name]) == 0
    tree = [line for line in capsys.readouterr().out.split("  part ")[0].splitlines() if line.strip()]
    total = int(re.search(r"([\d,]+) parameters", tree[0])[1].replace(",", ""))
    depth = lambda line: re.search(r"[^│├└─ ]", line).start()
    leaves, times = 0, {}
    for line, after in itertools.pairwise([*tree[1:], ""]):
        at = depth(line)
        times = {d: n for d, n in times.items() if d < at}
        times[at] = int(n[1]) if (n := re.search(r"\((\d+) alike\)", line)) else 1
        if (not after or depth(after) <= at) and (count := re.search(r"  ([\d,]+)$", line)):
            own = int(count[1].replace(",", ""))
            for n in times.values():
                own *= n
            leaves += own
    assert leaves == total
    tied = models.preset(name).tie
    assert ("shared with" in "".join(tree)) == tied


@pytest.mark.parametrize("pattern", ["full", "causal", "prefix", "window(3)"])
def test_the_narrow_last_block_follows_the_pattern(pattern):
    """A causal class token sees no pixel, on the narrow path neither."""
    model = made("vit-nano", pattern=pattern)
    given = example(model)
    torch.testing.assert_close(answer(model, given | {"whole": False})["logits"], answer(model, given)["logits"], rtol=1e-9, atol=1e-9)


def parts_of_the_last_block():
    """(what, how it is replaced) for every part of the last block of a ViT: by one that looks at other tokens too."""

    class Mixed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, *more):
            y = self.inner(x, *more)
            return y + y.mean(-2, keepdim=True)

    block = qkv.create("vit-nano").blocks[-1]
    return [(n, Mixed) for n, m in block.named_modules() if n and type(m).forward is not nn.Module.forward and "." in n]


@pytest.mark.parametrize(("part", "kind"), parts_of_the_last_block())
def test_the_narrow_last_block_steps_aside_for_a_part_that_was_replaced(part, kind):
    model = made("vit-nano")
    given, last = example(model), model.blocks[-1]
    parent, _, leaf = part.rpartition(".")
    last.get_submodule(parent).register_module(leaf, kind(last.get_submodule(part)))
    try:
        whole = answer(model, given)["logits"]
    except TypeError:  # a part that does not read one tensor
        return
    torch.testing.assert_close(answer(model, given | {"whole": False})["logits"], whole, rtol=0, atol=0)


@pytest.mark.parametrize("part", [n for n, _ in parts_of_the_last_block()])
def test_a_hook_on_one_part_of_the_narrow_last_block_sees_all_tokens(part):
    model, seen = made("vit-nano"), []
    given = example(model)
    answer(model, given)
    model.blocks[-1].get_submodule(part).register_forward_hook(lambda m, i, out: seen.append(out.shape))
    answer(model, given)
    wanted, seen[:] = list(seen), []
    answer(model, given | {"whole": False})
    assert seen == wanted


def test_a_hook_on_a_kernel_that_steps_is_called():
    """Performer decodes by a running sum; a hook on the kernel sees every step all the same."""
    model = made("gpt-nano", kernel="performer(features=8)")
    ids, seen = example(model)["input_ids"], []
    for m in model.modules():
        if isinstance(m, Attention):
            m.kernel.register_forward_hook(lambda m, i, out: (seen.append(1), 0 * out)[1])
    with torch.no_grad():
        whole, cache = model(input_ids=ids)["logits"], Cache(rolling=True)
        steps = [model(input_ids=i, cache=cache)["logits"] for i in ids.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-9)
    assert len(seen) == model.config.layers * (1 + ids.shape[1])


def test_a_hook_on_a_kernel_alone_is_called():
    for name in ("linformer-nano", "performer-nano", "gpt-nano"):
        model, seen = made(name), []
        attention_of(model).kernel.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        answer(model, example(model))
        assert seen, name


@pytest.mark.parametrize("pattern", ["summary(4)", "causal & summary(4)", "prefix & summary(2)"])
def test_a_pattern_that_leaves_a_token_nothing_to_see_is_refused(pattern):
    with pytest.raises(ValueError, match="token at 0 may see nothing"):
        qkv.create("gpt-nano", pattern=pattern)
    qkv.create("gpt-nano", pattern=f"causal & block(4) | {pattern}")


def spoken():
    """Every small config under every value of a slot that a published layout might have no words for, and every big one as it is."""
    values = AXES | {"conv": CONVOLUTIONS, "front": FRONTS, "output": ("hidden", "sequence", "tokens", "ctc", "lm")}
    for name, (family, _) in models.presets().items():
        cfg = models.preset(name)
        yield name, family, cfg
        for field in set(values) & {f.name for f in dataclasses.fields(cfg)}:
            for value in values[field]:
                with contextlib.suppress(ValueError):
                    yield f"{name} {field}={value}", family, dataclasses.replace(cfg, **{field: SMALL.get(value, value)})


def test_families_write_a_config_or_say_why_not():
    """No family answers a config that it has no words for by an error of its own code."""
    written, refused = 0, 0
    for name, family, cfg in spoken():
        own = " " in name and family
        for f in [models.FAMILIES[family]] if own else models.FAMILIES.values():
            for cls in f.classes:
                try:
                    assert f.write(cfg, cls)["architectures"] == [cls]
                    written += 1
                except models.Unsayable as e:
                    refused += 1
                    assert str(e).startswith(f"{f.name}: ")
                except Exception as e:
                    raise AssertionError(f"{f.name} as {cls}: {name}") from e
    assert written > 500 and refused > 5000


UNMAPPED = {  # what vmap cannot do, and why
    "switch-nano": "which expert a token goes to is looked at",
    "informer-nano": "which queries are worked out is looked at",
    "gru4rec-nano": "torch's own cells",
    "rnn-nano": "torch's own cells",
    "gru-nano": "torch's own cells",
    "lstm-nano": "torch's own cells",
    "lstm-seq2seq-nano": "torch's own cells",
    "bahdanau-nano": "torch's own cells",
}


@PRESETS
def test_gradients_by_torch_func(name):
    """torch.func.grad gives what backward gives."""
    model = made(name)
    given, rest = example(model), dict(model.named_buffers())
    wanted = gradients(model, given)
    parameters = {n: p.detach() for n, p in model.named_parameters() if n in wanted}
    still = {n: p.detach() for n, p in model.named_parameters() if n not in wanted}

    def total(parameters):
        torch.manual_seed(7)
        out = torch.func.functional_call(model, (parameters | still, rest), kwargs=given)
        out = {k: v for k, v in out.items() if torch.is_tensor(v) and v.is_floating_point()}
        return sum((v * torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v)).sum() for k, v in out.items() if k in moved)

    moved = {k for k, v in answer(model, given).items() if v.requires_grad}
    compare(torch.func.grad(total)(parameters), wanted)


@pytest.mark.parametrize("fields", [{"pattern": "causal & sliding(16)"}, {"kernel": "performer(features=8)", "pattern": "causal"}])
def test_gradients_by_torch_func_of_long_texts(fields):
    """Where blocks, whose gradients are worked out by hand, would be taken."""
    torch.manual_seed(1)
    model = qkv.create("gpt-nano", length=600, dim=16, layers=1, heads=2, **fields).double()
    ids, parameters = torch.randint(0, 60, (1, 600)), dict(model.named_parameters())
    loss = lambda p: torch.func.functional_call(model, p, kwargs={"input_ids": ids})["logits"].square().mean()
    loss(parameters).backward()
    wanted = {n: p.grad for n, p in parameters.items()}
    compare(torch.func.grad(loss)({n: p.detach() for n, p in parameters.items()}), wanted)


@pytest.mark.parametrize("name", [n for n in small() if n not in UNMAPPED and "mae" not in n])
def test_gradients_of_single_examples(name):
    """torch.func's own recipe: vmap over grad, against one example at a time."""
    model = made(name)
    given, parameters, rest = example(model), dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, given):
        alone = {k: v[None] for k, v in given.items()}
        out = torch.func.functional_call(model, (parameters, rest), kwargs=alone)
        return sum(v.square().sum() for v in out.values() if torch.is_tensor(v))

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="same")(parameters, given)
    for i in range(2):
        one = torch.func.grad(loss)(parameters, {k: v[i] for k, v in given.items()})
        compare({k: g[i] for k, g in grads.items()}, one)


@pytest.mark.parametrize("name", ["gpt-nano", "t5-nano", "bahdanau-nano"])
def test_a_compiled_model_takes_its_cache_back(name):
    torch._dynamo.reset()
    model = made(name)
    given = example(model)
    slot = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    ids = given.pop(slot)
    compiled, fast, slow = torch.compile(model, backend="eager"), Cache(), Cache()
    with torch.no_grad():
        for step in ids.split(1, 1):
            wanted = model(**given, **{slot: step}, cache=slow)["logits"]
            torch.testing.assert_close(compiled(**given, **{slot: step}, cache=fast)["logits"], wanted, rtol=1e-9, atol=1e-9)
    assert fast.length == ids.shape[1]
