"""Models of images and sound: equal to the reference at random weights, to what they were saved as, and refusing what they cannot read."""

import pytest
import torch
from safetensors.torch import load_file

import qkv
from qkv import models
from qkv.cli.main import main
from qkv.core import Context, Convolution, tokens

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 4,
       "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
MAE = VIT | {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 40}
SEES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
READS = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 60, "max_position_embeddings": 12,
         "bos_token_id": 57, "eos_token_id": 58, "pad_token_id": 1}  # fmt: skip
CLIP = {"projection_dim": 20, "vision_config": SEES, "text_config": READS}
ROWS = (
    ("ViTForImageClassification", VIT | {"num_labels": 7}, ("logits",)),
    ("ViTModel", VIT | {"qkv_bias": False, "num_channels": 1}, ("hidden", "pooled")),
    ("ViTMAEForPreTraining", MAE, ("loss", "logits", "mask")),
    ("ViTMAEForPreTraining", MAE | {"norm_pix_loss": True, "mask_ratio": 0.5}, ("loss", "logits", "mask")),
    ("ViTMAEModel", MAE, ("hidden", "mask")),
    ("CLIPModel", CLIP, ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")),
    ("CLIPModel", CLIP | {"text_config": READS | {"eos_token_id": 2, "hidden_act": "gelu"}}, ("logits_per_text", "text_embeds")),
    ("CLIPVisionModelWithProjection", SEES | {"projection_dim": 20}, ("image_embeds",)),
)


def inputs_of(cls, cfg):
    g = torch.Generator().manual_seed(2)
    image = cfg if "hidden_size" in cfg else cfg["vision_config"]
    out = {"pixel_values": torch.randn(2, image.get("num_channels", 3), 16, 16, generator=g)}
    if "MAE" in cls:
        out["noise"] = torch.rand(2, 16, generator=g)
    if cls == "CLIPModel":
        out["input_ids"] = torch.randint(3, 56, (3, 9), generator=g)
        out["input_ids"][:, 6] = 58
        out["attention_mask"] = (torch.arange(9) < 7).long().expand(3, -1)
    return out


def shaken(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0])
@torch.no_grad()
def test_equals_the_reference_at_random_weights(row, tmp_path):
    import transformers

    cls, cfg, outputs = row
    model = shaken(qkv.create(cls, **cfg))
    qkv.save(model, tmp_path / "m")
    theirs = getattr(transformers, cls).from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    inputs = inputs_of(cls, cfg)
    a, b = model(**inputs), theirs(**inputs)
    names = {"hidden": "last_hidden_state", "pooled": "pooler_output"}
    for name in outputs:
        torch.testing.assert_close(a[name], getattr(b, names.get(name, name)), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "t")
    assert set(load_file(tmp_path / "m/model.safetensors")) == set(load_file(tmp_path / "t/model.safetensors"))
    again = qkv.load(tmp_path / "t")
    torch.testing.assert_close(again(**inputs)[outputs[0]], a[outputs[0]], rtol=0, atol=1e-6)
    with torch.device("meta"):
        own = models.build(models.from_own(models.own_config(model.config)))  # our own layout too
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_positions_are_drawn_out_to_other_sizes():
    """As the reference does it; at the model's own size nothing changes; without being asked, another size is refused."""
    import transformers

    theirs = transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=True).eval()
    model = qkv.create("ViTModel", **VIT).eval()
    for name, value in {
        "embed.position.weight": theirs.embeddings.position_embeddings[0],
        "embed.first": theirs.embeddings.cls_token[0, 0],
    }.items():
        model.get_parameter(name).copy_(value)
    model.embed.cut.load_state_dict(theirs.embeddings.patch_embeddings.projection.state_dict())
    x = torch.randn(1, 3, 24, 20)
    torch.testing.assert_close(model.embed(x), theirs.embeddings(x, interpolate_pos_encoding=True), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the image is 24 x 20 and this model reads 16 x 16"):
        model(x)
    assert model(x, interpolate_pos_encoding=True).hidden.shape == (1, 31, 32)


def test_masked_patches_do_not_reach_the_encoder():
    """What the hidden patches hold changes the loss and nothing else; the seen ones' targets are not in the loss."""
    model = shaken(qkv.create("ViTMAEForPreTraining", **MAE)).double()
    x, noise = torch.randn(1, 3, 16, 16, dtype=torch.float64), torch.rand(1, 16)
    out = model(x, noise=noise)
    assert out.mask.sum() == 12 and out.hidden.shape[1] == 5
    hidden = int(out.mask[0].nonzero()[0])
    seen = int((out.mask[0] == 0).nonzero()[0])
    target = model.target(x)
    assert target.shape == (1, 16, 48)
    torch.testing.assert_close(target[0, 5].view(4, 4, 3).permute(2, 0, 1), x[0, :, 4:8, 4:8])
    row, column = divmod(hidden, 4)
    other = x.clone()
    other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    torch.testing.assert_close(model(other, noise=noise).hidden, out.hidden)
    assert not torch.equal(model(other, noise=noise).loss, out.loss)
    wrong = (out.logits - target).square().mean(-1)[0]
    torch.testing.assert_close(out.loss, wrong[out.mask[0] == 1].mean())
    assert out.mask[0, seen] == 0


def test_mean_pooling_leaves_padding_out():
    model = qkv.create("bert-nano", vocab=50, dim=32, heads=2, layers=2, length=16, output="sequence", pooling="mean").double().eval()
    ids = torch.randint(5, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask).logits[1:], model(input_ids=ids[1:, :6]).logits, rtol=0, atol=1e-10
    )
    first = qkv.create("bert-nano", vocab=50, dim=32, heads=2, layers=2, length=16, output="sequence").double().eval()
    first.load_state_dict(model.state_dict())
    assert not torch.allclose(first(input_ids=ids).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_a_convolution_sees_its_neighbours_and_no_padding():
    torch.manual_seed(0)
    layer = Convolution(8, kernel=5, conv_norm="none").double()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    y = layer(x, Context(tokens(12)))
    up = torch.einsum("oi,bti->bto", layer.up.weight[..., 0], x) + layer.up.bias
    gated = up[..., :8] * up[..., 8:].sigmoid()
    deep = torch.zeros_like(gated)
    for t in range(12):
        deep[:, t] = sum(gated[:, t + k - 2] * layer.depth.weight[:, 0, k] for k in range(5) if 0 <= t + k - 2 < 12) + layer.depth.bias
    want = torch.nn.functional.silu(deep) @ layer.down.weight[..., 0].T + layer.down.bias
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
    valid = torch.arange(12)[None] < torch.tensor([[12], [7]])
    other = torch.where(valid[..., None], x, 9.0)
    torch.testing.assert_close(
        layer(other, Context(tokens(12, valid=valid)))[1, :7], layer(x[1:, :7], Context(tokens(7)))[0], rtol=0, atol=1e-12
    )
    causal = Convolution(8, kernel=5, causal=True, conv_norm="none").double()
    changed = x.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(causal(changed, Context(tokens(12)))[:, :6], causal(x, Context(tokens(12)))[:, :6])


@pytest.mark.parametrize("position", ("none", "rope", "xl", "shaw(far=4)", "alibi"))
@torch.no_grad()
def test_a_padded_conformer_equals_its_rows_alone(position):
    torch.manual_seed(0)
    cfg = models.Conformer(dim=32, heads=4, layers=2, hidden=48, position=position, features=20, conv="convolution(kernel=5)", length=64)
    model = models.build(cfg).double().eval()
    x = torch.randn(2, 15, 20, dtype=torch.float64)
    out = model(x, lengths=torch.tensor([15, 9])).hidden
    torch.testing.assert_close(out[1, :9], model(x[1:, :9]).hidden[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(out[0], model(x[:1]).hidden[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: models.preset("vit-nano", patch=5), "patch=5 does not divide image=32"),
        (lambda: models.preset("vit-nano", class_token=False), "pooling=first reads the class token"),
        (lambda: models.build(models.preset("vit-nano", output="projection")), "projection=None is the width"),
        (lambda: models.preset("mae-nano", rate=1.0), r"rate=1.0: must be in \[0, 1\)"),
        (lambda: models.create("vit-nano")(torch.randn(1, 1, 32, 32)), r"they must be \(batch, 3, 32, 32\)"),
        (lambda: models.create("vit-nano")(torch.randn(1, 3, 2, 2), interpolate_pos_encoding=True), "smaller than a patch"),
        (lambda: models.create("mae-nano")(torch.randn(1, 3, 32, 32), noise=torch.rand(1, 5)), "1 images of 64 patches need"),
        (lambda: models.build(models.Conformer(dim=32, heads=4, layers=1, conv="convolution(kernel=0)")), "kernel and expand"),
        (lambda: models.build(models.Conformer(dim=32, heads=4, layers=1, position="learned")), "takes none, rope"),
        (lambda: models.create("clip-vit-base-32", text={"vocab": 9, "dim": 8, "layers": 1, "heads": 1, "length": 4}), "text.eos is not set"),
    ),
)  # fmt: skip
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_line_knows_them(capsys):
    for name in ("vit-nano", "mae-nano", "clip-vit-base-32"):
        assert main(["show", name]) == 0
        assert "FLOPs" in capsys.readouterr().out
        assert main(["train", name]) == 2 and "does not read text" in capsys.readouterr().err
    assert main(["cost", "vit-nano", "image=16,32"]) == 0 and "65" in capsys.readouterr().out
    assert main(["cost", "vit-nano", "length=64"]) == 2 and "give image=32,64" in capsys.readouterr().err
