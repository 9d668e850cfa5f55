"""Models of images and sound: equal to the reference at random weights, to what they were saved as, and refusing what they cannot read."""

import pytest
import torch
from reference import shaken
from safetensors.torch import load_file

import qkv
from qkv import models
from qkv.cli.main import main
from qkv.core import Context, Convolution, tokens
from qkv.data import images
from qkv.data.text import DataError
from qkv.objectives.images import Images
from qkv.training import folder

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


@pytest.mark.parametrize("position", ("none", "learned", "sinusoid2d", "rope2d", "alibi", "xl"))
@torch.no_grad()
def test_patches_may_change_places_only_where_none_is_known(position):
    model = shaken(
        models.create("vit-nano", position=position, image=8, patch=2, dim=32, layers=2, class_token=False, pooling="mean")
    ).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    moved = x.clone()
    moved[..., 0:2, 0:2], moved[..., 4:6, 6:8] = x[..., 4:6, 6:8], x[..., 0:2, 0:2]
    assert torch.allclose(model(x).logits, model(moved).logits, rtol=0, atol=1e-9) == (position == "none")


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
    cfg = models.SpeechEncoder(
        dim=32, heads=4, layers=2, hidden=48, position=position, features=20, front="frames", conv="convolution(kernel=5)", length=64
    )
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
        (lambda: models.build(models.SpeechEncoder(dim=32, heads=4, layers=1, conv="convolution(kernel=0)")), "kernel and expand"),
        (lambda: models.build(models.SpeechEncoder(dim=32, heads=4, layers=1, position="learned")), "takes none, rope"),
        (lambda: models.create("clip-vit-base-32", eos=None), "words.eos is not set"),
    ),
)  # fmt: skip
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_line_knows_them(capsys):
    for name in (
        "vit-nano",
        "mae-nano",
        "clip-vit-base-32",
        "whisper-nano",
        "conformer-nano",
        "wav2vec2-conformer-large",
        "flamingo-nano",
        "resnet-20",
    ):
        assert main(["show", name]) == 0
        assert ("memory" if "conformer" in name else "FLOPs") in capsys.readouterr().out
    assert main(["train", "drawer-nano", "task=none"]) == 2 and "it is trained with task=draw data=FOLDER" in capsys.readouterr().err
    assert main(["show", "drawer-nano"]) == 0 and "judges" in capsys.readouterr().out
    assert main(["train", "clip-nano"]) == 2 and "digits is no table here" in capsys.readouterr().err
    assert main(["cost", "vit-nano", "image=16,32"]) == 0 and "65" in capsys.readouterr().out
    assert main(["cost", "vit-nano", "length=64"]) == 2 and "give image=32,64" in capsys.readouterr().err


def painted(folder, count=12):
    """Two classes: a bright left half, a bright right half; sizes, modes and formats as people have them."""
    import numpy as np
    from PIL import Image

    r = np.random.default_rng(0)
    for i in range(count):
        name = ("left", "right")[i % 2]
        x = r.integers(0, 60, (20 + i, 16, 3)).astype(np.uint8)
        x[:, slice(0, 8) if name == "left" else slice(8, 16)] += 180
        mode = ("RGB", "L", "RGBA", "CMYK", "P", "1")[i % 6]
        image = Image.fromarray(x).convert(mode)
        where = folder / name
        where.mkdir(parents=True, exist_ok=True)
        image.save(where / (f"{i}.tif" if mode == "CMYK" else f"{i}.png"))


def test_images_are_read_as_people_have_them(tmp_path):
    """A folder and a zip of it alike; grey, palette, alpha, CMYK; IDX files with their labels."""
    import gzip
    import struct
    import zipfile

    import numpy as np
    from PIL import Image

    painted(tmp_path / "a")
    folder = images.read(tmp_path / "a")
    assert sorted(e.label for e in folder) == ["left"] * 6 + ["right"] * 6
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for p in sorted((tmp_path / "a").rglob("*.*")):
            z.write(p, p.relative_to(tmp_path))
    zipped = images.read(tmp_path / "a.zip")
    for one, two in zip(folder, zipped):
        x, y = (images.pixels(e, 16, 3) for e in (one, two))
        assert x.shape == (3, 16, 16) and (x == y).all() and one.label == two.label
        bright = x.mean((0, 1))
        assert (bright[:7].mean() > bright[9:].mean() + 60) == (one.label == "left"), one.where
        assert images.pixels(one, 8, 1).shape == (1, 8, 8)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (images.pixels(images.read(tmp_path / "clear.png")[0], 4, 3) == 255).all()  # alpha lies on white
    pixels, labels = np.arange(3 * 4 * 5, dtype=np.uint8), np.array([7, 0, 9], np.uint8)
    (tmp_path / "x-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 3, 4, 5) + pixels.tobytes()))
    (tmp_path / "x-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + labels.tobytes()))
    rows = images.read(tmp_path / "x-images-idx3-ubyte.gz")
    assert [e.label for e in rows] == ["7", "0", "9"] and (rows[2].text[..., 0] == pixels[40:].reshape(4, 5)).all()


def test_images_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("RGB", (9, 9)).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.png").write_text("not an image")
    (tmp_path / "x-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x05" * 3)
    (tmp_path / "empty").mkdir()
    for name in ("cut.jpg", "words.png"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as an image"):
            images.pixels(images.read(tmp_path / name)[0], 8, 3)
    Image.new("L", (1, 1), 9).save(tmp_path / "dot.png")
    assert (images.pixels(images.read(tmp_path / "dot.png")[0], 8, 1) == 9).all()
    monkeypatch.setattr(images, "PIXELS", 50)
    with pytest.raises(DataError, match="has 9 x 9 pixels, over 50"):
        images.pixels(images.read(tmp_path / "good.jpg")[0], 8, 3)
    for source, message in (
        ("x-images-idx3-ubyte", "is cut off: it says 5 x 5 x 5"),
        ("empty", "holds no images"),
        ("none", "is no file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            images.read(tmp_path / source)
    with pytest.raises(DataError, match="no test part"):
        Images.read(None, "digits", "test")


def test_augmentation_moves_and_mirrors_in_training_only():
    import numpy as np

    cfg = models.preset("vit-nano", image=8, patch=4, channels=1, labels=2, label_names=("a", "b"))
    task = Images(cfg, shift=2, flip=True)
    item = {"pixels": torch.arange(64, dtype=torch.uint8).view(1, 8, 8), "label": 0}
    still = task.pairs([item], None).inputs["pixel_values"]
    torch.testing.assert_close(still, torch.arange(64).view(1, 1, 8, 8) / 127.5 - 1)
    r = np.random.default_rng(0)
    seen = {tuple(task.pairs([item], r).inputs["pixel_values"].flatten().tolist()) for _ in range(300)}
    assert len(seen) == 50  # 5 x 5 places, mirrored or not
    assert tuple(still.flatten().tolist()) in seen


def test_images_train_resume_and_answer(tmp_path, capsys, monkeypatch):
    """From hidden patches to classes, from the command line; resuming is bit for bit."""
    import json

    monkeypatch.setenv("QKV_RUNS", str(tmp_path / "runs"))
    painted(tmp_path / "a", 48)
    painted(tmp_path / "b", 12)
    small = ("image=16", "patch=4", "dim=32", "layers=1", "heads=2", "hidden=64", "batch=8", "threads=1", "precision=exact", f"data={tmp_path / 'a'}",
             f"valid={tmp_path / 'b'}")  # fmt: skip
    assert (
        main(["train", "mae-nano", *small, "decoder_dim=32", "decoder_layers=1", "decoder_heads=2", "decoder_hidden=32", "steps=20"]) == 0
    )
    first = folder.find("last")
    held = [m["valid_loss"] for m in folder.read_metrics(first / "metrics.jsonl") if "valid_loss" in m]
    assert held[-1] < held[0]
    assert main(["train", "vit-nano", "init=last", *small, "steps=60", "warmup=5", "lr=5e-3", "task=images(shift=1)"]) == 0
    run = folder.find("last")
    before, after = (qkv.load(folder.weights(r)) for r in (str(first), str(run)))
    assert before.encoder.embed.position.weight.equal(after.embed.position.weight)  # fixed sinusoids came along
    last = [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_accuracy" in m][-1]
    assert last["valid_accuracy"] == 1.0 and after.config.label_names == ("left", "right")
    assert main(["eval", str(run), str(tmp_path / "b"), f"out={tmp_path / 'said.jsonl'}"]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(said) == 12
    capsys.readouterr()
    losses = []
    for steps in (("8",), ("4", "8")):
        for i, n in enumerate(steps):
            what = ("train", "vit-nano", *small, "schedule=inverse_sqrt") if i == 0 else ("train", str(folder.find("last")))
            assert main([*what, f"steps={n}"]) == 0
        losses.append([m["loss"] for m in folder.read_metrics(folder.find("last") / "metrics.jsonl") if "loss" in m])
    assert losses[0][:4] == losses[1][:4] and len(losses[1]) == 8
