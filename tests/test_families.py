"""One battery over every family: equal to the reference, to itself by every path, and to what it was saved as."""

import json

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file

import qkv
from qkv.core import Attention
from qkv.generation import generate

ROWS = pytest.mark.parametrize("row", FAMILIES, ids=lambda r: r.name)
DECODERS = pytest.mark.parametrize("row", [r for r in FAMILIES if r.topology in ("decoder", "encoder-decoder")], ids=lambda r: r.name)


def ours(row, dtype=torch.float64):
    torch.manual_seed(1)
    model = qkv.create(row.cls, **row.config).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # so that biases, norms and scales count
            if p.requires_grad and "position" not in name.split("."):
                p.add_(0.1 * torch.randn_like(p))
    return model


def inputs_of(row, rows=2, length=9):
    g = torch.Generator().manual_seed(3)
    vocab = 50
    ids = torch.randint(3, vocab, (rows, length), generator=g)
    if row.topology == "choice":
        return {"input_ids": torch.randint(3, vocab, (rows, 3, length), generator=g)}
    if row.topology == "encoder":
        return {"input_ids": ids, "token_type_ids": torch.randint(0, 2, (rows, length), generator=g)}
    if row.topology == "encoder-decoder":
        return {"input_ids": ids, "decoder_input_ids": torch.randint(3, vocab, (rows, 7), generator=g)}
    return {"input_ids": ids}


def reference(row, folder):
    import transformers

    # the reference keeps parts in float32 whatever the dtype, so it is compared in float32
    return getattr(transformers, row.cls).from_pretrained(folder, attn_implementation="eager").eval()


THEIRS = {"hidden": "last_hidden_state", "pooled": "pooler_output", "encoder_hidden": "encoder_last_hidden_state"}


@ROWS
def test_equals_the_reference_at_random_weights(row, tmp_path):
    model = ours(row, torch.float32)
    qkv.save(model, tmp_path / "m")
    theirs = reference(row, tmp_path / "m")
    inputs = inputs_of(row)
    plain = {"use_cache": False} if row.name == "fsmt" else {}  # with its cache, the reference's FSMT has no causal mask
    with torch.no_grad():
        a, b = model(**inputs), theirs(**inputs, **plain)
    theirs.save_pretrained(tmp_path / "t")
    assert set(load_file(tmp_path / "m/model.safetensors")) == set(load_file(tmp_path / "t/model.safetensors"))
    for name in row.outputs:
        torch.testing.assert_close(a[name], getattr(b, THEIRS.get(name, name)), rtol=0, atol=1e-5)


@ROWS
def test_padding_changes_nothing(row):
    """Each row of a right-padded batch equals that row alone (left-padded too, where the model tells positions by relation)."""
    if row.topology == "choice":
        row_inputs, model = inputs_of(row), ours(row)
        mask = torch.ones_like(row_inputs["input_ids"])
        mask[..., -3:] = 0
        short = model(input_ids=row_inputs["input_ids"][..., :-3])["logits"]
        torch.testing.assert_close(model(**row_inputs, attention_mask=mask)["logits"], short, rtol=0, atol=1e-10)
        return
    model, inputs = ours(row), inputs_of(row)
    pad = model.config.pad or 0
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, -3:] = 0
    padded = inputs | {"input_ids": torch.where(mask.bool(), inputs["input_ids"], pad), "attention_mask": mask}
    one = {k: v[1:2, :-3] if k in ("input_ids", "token_type_ids") else v[1:2] for k, v in inputs.items()}
    with torch.no_grad():
        full, alone = model(**padded), model(**one)
    for name in row.outputs:
        a, b = full[name][1:2], alone[name]
        a = a[:, : b.shape[1]] if a.dim() > 1 else a
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("row", [r for r in FAMILIES if r.topology == "decoder"], ids=lambda r: r.name)
def test_left_padding_changes_nothing(row):
    model, inputs = ours(row), inputs_of(row)
    ids = torch.cat([torch.zeros(2, 4, dtype=torch.long), inputs["input_ids"]], 1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.long), torch.ones_like(inputs["input_ids"])], 1)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    name = row.outputs[0]
    with torch.no_grad():
        a = model(input_ids=ids, attention_mask=mask, position_ids=position)[name][:, 4:]
        torch.testing.assert_close(a, model(**inputs)[name], rtol=0, atol=1e-10)


@DECODERS
def test_cached_equals_full(row):
    model, inputs = ours(row), inputs_of(row)
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    name, cache, got = row.outputs[0], qkv.Cache(4), []
    with torch.no_grad():
        for a, b in ((0, 3), (3, 4), (4, 7)):
            out = model(**inputs | {key: inputs[key][:, a:b]}, cache=cache)
            got.append(out[name])
        full = model(**inputs)[name][:, :7]
    torch.testing.assert_close(torch.cat(got, 1), full, rtol=0, atol=1e-10)


@DECODERS
def test_no_token_sees_the_future(row):
    model, inputs = ours(row), inputs_of(row)
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    changed = inputs | {key: inputs[key].clone()}
    changed[key][:, 4] = (changed[key][:, 4] - 3 + 7) % 40 + 3
    name = row.outputs[0]
    with torch.no_grad():
        a, b = model(**inputs)[name], model(**changed)[name]
    torch.testing.assert_close(a[:, :4], b[:, :4], rtol=0, atol=1e-12)  # experts see other rows in one product, hence not bit for bit
    assert (a[:, 4:] - b[:, 4:]).abs().max() > 1e-6


@ROWS
def test_explicit_and_fast_attention_agree(row):
    model, inputs = ours(row), inputs_of(row)
    seen = []
    with torch.no_grad():
        fast = model(**inputs)
        hooks = [
            m.kernel.weights.register_forward_hook(lambda m, i, o: seen.append(o)) for m in model.modules() if isinstance(m, Attention)
        ]
        slow = model(**inputs)
    assert len(seen) >= len(hooks) > 0  # shared layers run several times
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), rtol=0, atol=1e-12)
    for name in row.outputs:
        torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=1e-10)


@ROWS
def test_save_load_save_is_bitwise(row, tmp_path):
    model = ours(row, torch.float32)
    qkv.save(model, tmp_path / "a")
    again = qkv.load(tmp_path / "a")
    qkv.save(again, tmp_path / "b")
    a, b = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())
    state, other = model.state_dict(), again.state_dict()
    assert set(state) == set(other) and all(torch.equal(state[k], other[k]) for k in state)
    assert again.config == model.config


@ROWS
def test_overfits_one_batch(row):
    torch.manual_seed(0)
    quiet = dict.fromkeys(
        ("resid_pdrop", "attn_pdrop", "embd_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "dropout"), 0.0
    )
    known = {
        k for k in quiet if k in {x.theirs for x in qkv.models.CLASSES[row.cls].keys} or (k == "embd_pdrop" and "n_embd" in row.config)
    }
    model = qkv.create(row.cls, **row.config | dict.fromkeys(known, 0.0))
    model.train()
    inputs = inputs_of(row)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(60):
        out = model(**inputs)
        loss = 0.0
        for name in row.outputs:
            y = out[name]
            if name in ("hidden", "pooled", "encoder_hidden"):
                torch.manual_seed(5)
                loss = loss + (y - torch.randn(y.shape)).square().mean()
            else:
                torch.manual_seed(5)
                labels = torch.randint(0, y.shape[-1], y.shape[:-1])
                loss = loss + torch.nn.functional.cross_entropy(y.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0], losses[::10]


@pytest.mark.parametrize(
    "row", [r for r in FAMILIES if r.topology in ("decoder", "encoder-decoder") and "logits" in r.outputs], ids=lambda r: r.name
)
def test_generation_equals_the_plain_forward(row):
    """Unequal prompts in one batch, with a cache, write what each writes alone, token by token, without one."""
    model = ours(row)
    prompts = [[5, 6, 7, 8, 9], [11], [20, 21, 22]]
    together = generate(model, prompts, most=8, end=())
    for prompt, answer in zip(prompts, together):
        assert generate(model, [prompt], most=8, end=(), cached=False) == [answer]
