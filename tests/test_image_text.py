"""Images and text: two towers that match, a decoder that sees, what they are trained on and what they are asked."""

import json

import numpy as np
import pytest
import torch
from reference import shaken

import qkv
from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import Data, media
from qkv.data import tokenizer as tokenizers
from qkv.data.text import DataError
from qkv.generation import generate
from qkv.interpret import rollout, weights
from qkv.training import folder

IDEFICS = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
           "vision_config": {"embed_dim": 24, "image_size": 16, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}}  # fmt: skip
RESAMPLER = {"use_resampler": True, "resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 8,
             "qk_layer_norms_perceiver": True}  # fmt: skip


@pytest.mark.parametrize("more", [
    {"use_resampler": True, "perceiver_config": RESAMPLER},
    {"qk_layer_norms": True, "alpha_type": "vector", "cross_layer_interval": 2},
    {"additional_vocab_size": 3, "tie_word_embeddings": True, "hidden_act": "gelu"},
], ids=["resampler", "qk-norms", "more-tokens"])  # fmt: skip
@torch.no_grad()
def test_idefics_equals_the_reference(more, tmp_path):
    """Logits, decoding with a cache, and the reference reads what we save."""
    import transformers

    theirs = shaken(transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig(**IDEFICS | more)), 0.2, True)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path / "a")
    ours = qkv.load(tmp_path / "a")
    ids, pixels = torch.randint(3, 50, (2, 7)), torch.randn(2, 2, 3, 16, 16)
    seen = torch.tensor([[1, 0]] * 3 + [[1, 1]] * 4)[None].repeat(2, 1, 1)
    seen[1, :2] = 0  # sees no image yet
    wanted = theirs(input_ids=ids, pixel_values=pixels, image_attention_mask=seen, attention_mask=torch.ones_like(ids)).logits
    out = ours(input_ids=ids, pixel_values=pixels, image_attention_mask=seen)
    torch.testing.assert_close(out["logits"], wanted, atol=2e-5, rtol=0)
    first = ours(input_ids=ids[:, :4], pixel_values=pixels, image_attention_mask=seen[:, :4], use_cache=True)
    rest = ours(input_ids=ids[:, 4:], media=ours.look(pixels), image_attention_mask=seen, cache=first["cache"])
    torch.testing.assert_close(torch.cat([first["logits"], rest["logits"]], 1), out["logits"], atol=1e-5, rtol=0)
    qkv.save(ours, tmp_path / "b")
    again = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path / "b")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert a.equal(b), name


@pytest.mark.parametrize("see", ["last", "previous"])
@torch.no_grad()
def test_gated_blocks_look_where_they_may(see):
    """Against attention written out, token by token. Before the first image: nothing, or the mean of everything."""
    from qkv.core import Context, tokens
    from qkv.models.flamingo import CrossModal, remembered

    cfg = CrossModal(dim=16, seen_dim=12, look_heads=2, look_head_dim=4, resampler="none", layers=1, look_hidden=20, see=see)
    model = shaken(models.build(cfg), 0.2, True).double()
    look = model.blocks[0].look
    media, x = torch.randn(1, 3, 2, 12).double(), torch.randn(1, 8, 16).double()
    places = torch.tensor([[0, 1, 0, 1, 0, 0, 1, 0]]).bool()
    count = places.long().cumsum(-1)
    memory, seen = remembered(media)
    ctx = Context(tokens(8, marks={"images": cfg.bits(count, 3)}), memory, seen)
    got = look(x, ctx)
    a = look.f.attn
    for t in range(8):
        n = int(count[0, t])
        rows = media[0, n - 1] if see == "last" else media[0, :n].flatten(0, 1)
        q = a.q(look.pre(x[:, t])).view(2, 4)
        if n == 0:
            y = torch.zeros(16).double() if see == "last" else a.o(a.v(memory[0]).mean(0))
        else:
            k, v = (p(rows).view(-1, 2, 4) for p in (a.k, a.v))
            w = (torch.einsum("hc,shc->hs", q, k) / 2).softmax(-1)
            y = a.o(torch.einsum("hs,shc->hc", w, v).flatten())
        torch.testing.assert_close(got[0, t], x[0, t] + look.gate.weight.tanh() * y, atol=1e-12, rtol=0)
    out = model(vision_features=media[:, :, None], hidden_states=x, media_locations=places)
    assert out["media"].equal(media) and not out["hidden"].equal(x)
    closed = models.build(cfg).double()  # gates begin closed: text is as without images (section 2.2)
    assert closed(vision_features=media[:, :, None], hidden_states=x, media_locations=places)["hidden"].equal(x)


def seeing():
    words = models.Decoder(vocab=40, length=48, dim=32, layers=2, heads=2, hidden=48, pad=0, bos=5, eos=6)
    picture = models.ImageEncoder(dim=24, layers=1, heads=2, hidden=32, image=8, patch=4, output="hidden")
    cfg = models.SeeingDecoder(words=words, picture=picture, resampler="perceiver(latents=3, layers=1, heads=2, head_dim=8, mult=2)", look_heads=2,
                               look_head_dim=8, more=1, image=40)  # fmt: skip
    return shaken(models.build(cfg), 0.2, True)


@torch.no_grad()
def test_writing_about_images_in_a_batch_is_writing_about_each():
    """Rows of different lengths and numbers of images, left padding, caches: all as one at a time without a cache."""
    model = seeing()
    pixels = torch.randn(2, 2, 3, 8, 8)
    media = model.look(pixels)
    prompts = [[40, 9, 11, 6, 40], [40]]
    together = generate(model, prompts, most=6, given={"media": media}, end=())
    for i, prompt in enumerate(prompts):
        alone = generate(model, [prompt], most=6, given={"media": media[i : i + 1]}, end=(), cached=False)
        assert alone[0] == together[i]
    ids = torch.tensor([[40, 9, 40, 9]])
    one = model(input_ids=ids, pixel_values=pixels[:1])["logits"]
    other = model(input_ids=ids, pixel_values=torch.stack([pixels[0, 0], pixels[1, 1]])[None])["logits"]
    assert one[:, :2].equal(other[:, :2]) and not one[:, 2:].equal(other[:, 2:])  # text before an image does not see it
    with pytest.raises(ValueError, match="the text holds 3 images and 2 are given"):
        model(input_ids=torch.tensor([[40, 40, 40]]), pixel_values=pixels[:1])
    with pytest.raises(ValueError, match="give either pixel_values"):
        model(input_ids=ids)


COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "yellow": (220, 220, 30),
}


def painted(where):
    """Squares of two colours, named `red over blue`."""
    from PIL import Image

    where.mkdir()
    rows = ["file\tname"]
    for a in COLOURS:
        for b in COLOURS:
            x = np.zeros((12, 12, 3), np.uint8)
            x[:6], x[6:] = COLOURS[a], COLOURS[b]
            Image.fromarray(x).save(where / f"{a}_{b}.png")
            rows.append(f"{a}_{b}.png\t{a} over {b}")
    (where / "names.tsv").write_text("\n".join(rows) + "\n")
    return where / "names.tsv"


def test_tables_of_files_are_read_and_their_faults_named(tmp_path):
    import zipfile

    table = painted(tmp_path / "a")
    rows = media.table(Data(), table, "train", (".png",))
    assert len(rows) == 36 and rows[1].pair == "red over green" and rows[1].text == tmp_path / "a/red_green.png"
    assert len(media.table(Data(without="red"), table, "train", (".png",))) == 25
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for p in (tmp_path / "a").glob("*.png"):
            z.write(p, f"deep/{p.name}")
    packed = media.table(Data(files=str(tmp_path / "a.zip"), text="file", pair="name"), table, "train", (".png",))
    assert [e.pair for e in packed] == [e.pair for e in rows] and packed[1].text == rows[1].text.read_bytes()
    (tmp_path / "odd.csv").write_text("what,ever\n1,2\n")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:2000])
    for cfg, source, message in (
        (Data(), tmp_path / "odd.csv", "which column names the files"),
        (Data(files=str(tmp_path / "gone")), table, "data.files=.*gone is no folder or archive"),
        (Data(files=str(tmp_path)), table, "row 2: there is no file red_red.png in"),
        (Data(text="none"), table, "has no column 'none'"),
    ):
        with pytest.raises(DataError, match=message):
            media.table(cfg, source, "train", (".png",))


def test_ranks_of_retrieval_are_those_of_the_definition():
    task = objectives.TASKS["match"]
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 3, 2]]  # two are swapped
    items = [{"wanted": w} for w in "abcd"]
    held, nearest = task.ranked(task.__new__(task), items, list(zip(image, text)))
    assert held == {"at1": 0.5, "at5": 1.0, "back1": 0.5, "back5": 1.0} and nearest == ["a", "b", "d", "c"]


def test_pictures_and_names_find_each_other_and_are_captioned(tmp_path, capsys):
    """CLIP, then a language model, then a Flamingo of both, from the command line."""
    table = painted(tmp_path / "a")
    common = ("threads=1", "precision=exact", "tokenizer=char")  # trained ones break ties by chance
    small = ("picture.image=8", "picture.patch=4", "picture.dim=32", "picture.layers=1", "picture.heads=2", "picture.hidden=48", "picture.dropout=0",
             "words.dim=32", "words.layers=1", "words.heads=2", "words.hidden=48", "words.dropout=0", "width=16")  # fmt: skip
    match = (
        "train",
        "clip-nano",
        *small,
        *common,
        f"data={table}",
        "holdout=0.3",
        "batch=12",
        "warmup=10",
        "lr=3e-3",
        "schedule=inverse_sqrt",
    )
    assert main([*match, "task=match(drop=0.1)", "steps=40"]) == 0
    clip = folder.find("last")
    rows = folder.read_metrics(clip / "metrics.jsonl")
    held = [m for m in rows if "valid_at5" in m]
    assert held[-1]["valid_at5"] > held[0]["valid_at5"] and held[-1]["valid_loss"] < 0.9 * held[0]["valid_loss"]
    losses = [m["loss"] for m in rows if "loss" in m]
    assert main([*match, "task=match(drop=0.1)", "steps=15"]) == 0 and main(["train", "last", "steps=20"]) == 0
    again = [m["loss"] for m in folder.read_metrics(folder.find("last") / "metrics.jsonl") if "loss" in m]
    assert again[:15] == losses[:15] and len(again) == 20  # it goes on from the best evaluation, which need not be the last
    picture = tmp_path / "seen.png"
    one = str(tmp_path / "a/red_blue.png")
    capsys.readouterr()
    assert main(["classify", str(clip), one, "--labels", "red over blue,green over white", f"picture={picture}"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("red over blue") and picture.stat().st_size > 3000
    assert main(["eval", str(clip), f"picture={tmp_path / 'm.png'}"]) == 0 and (tmp_path / "m.png").exists()
    for words, message in (
        (["classify", str(clip), one], "a CLIP chooses among the words"),
        (["classify", str(clip), one, "labels=a", "prompt=no place"], "has no place {} for the label"),
        (["classify", str(clip), one, "labels=" + "red " * 40], "the model reads 22"),
        (["classify", str(clip), str(tmp_path / "gone.png"), "labels=a"], "is no file here"),
        (["caption", str(clip), one], "a Flamingo writes about images"),
        (["transcribe", str(clip), one], "hears"),
        (["generate", str(clip), "red"], "try qkv classify"),
    ):
        assert main(words) == 2 and message in capsys.readouterr().err, message
    texts = tmp_path / "names.txt"
    texts.write_text("\n".join(f"{a} over {b}" for a in COLOURS for b in COLOURS) + "\n")
    lm = (
        "train",
        "gpt-nano",
        "dim=32",
        "layers=2",
        "heads=2",
        "hidden=48",
        "length=90",
        f"data={texts}",
        "split=line",
        *common,
        "steps=20",
        "batch=4",
    )
    assert main(lm) == 0
    language = folder.find("last")
    assert (
        main(["train", "flamingo-nano", "task=caption", f"data={table}", "holdout=0.3"]) == 2
        and "init=words=RUN,picture=RUN" in capsys.readouterr().err
    )
    see = ("train", "flamingo-nano", "task=caption(shots=2)", f"data={table}", f"init=words={language},picture={clip}", "holdout=0.3", "threads=1",
           "precision=exact", "resampler=perceiver(latents=4, layers=1, heads=2, head_dim=8)", "look_heads=2", "look_head_dim=16", "batch=12", "lr=1e-2",
           "warmup=5", "schedule=inverse_sqrt")  # fmt: skip
    assert main([*see, "steps=12"]) == 0
    run = folder.find("last")
    before, after = qkv.load(folder.weights(str(language))), qkv.load(folder.weights(str(run)))
    assert after.words.blocks[1].attn.f.q.weight.equal(before.blocks[1].attn.f.q.weight)  # the language model is as it was
    assert after.words.blocks[0].look.gate.weight.abs() > 0
    rows = [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_loss" in m]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]
    capsys.readouterr()
    assert main(["caption", str(run), one]) == 0 and capsys.readouterr().out.strip()
    assert main(["eval", str(run), "task=caption(shots=0)", f"out={tmp_path / 'o.jsonl'}"]) == 0
    assert {"where", "said", "wanted"} == set(json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0]))


def test_a_caption_learns_from_all_texts_and_is_judged_on_the_last():
    tokenizer = tokenizers.train("char", ["abcdefgh"], None)
    model = seeing()
    cfg = models.replace(model.config, vocab=len(tokenizer), pad=tokenizer.pad, bos=tokenizer.bos, eos=tokenizer.eos)
    cfg = models.replace(cfg, image=len(tokenizer))
    task = objectives.make_task("caption(shots=2, near=false)", cfg, tokenizer, 48)
    items = [
        {"pixels": torch.zeros(3, 8, 8, dtype=torch.uint8), "ids": tokenizer.encode(t), "wanted": t, "where": t} for t in ("ab", "cde", "f")
    ]
    task.pool = items
    rows = task.rows(items[:1], np.random.default_rng(0), 2)
    assert len(rows[0]) == 3 and rows[0][-1] is items[0]
    held = task.pairs(items[:1], None)
    assert held.inputs["pixel_values"].shape[1] == 3 and held.count == 3  # a, b, end
    trained = [task.pairs(items[:1], np.random.default_rng(s)) for s in range(20)]
    assert {b.inputs["pixel_values"].shape[1] for b in trained} == {1, 2, 3}
    for b in trained:
        texts = b.inputs["input_ids"][0].tolist()
        assert b.count == len(texts) + 1 - texts.count(cfg.image) and cfg.image not in b.labels.tolist()
    with pytest.raises(DataError, match="with 2 examples beside it the model reads"):
        task.text("abcdefgh" * 2, "x")


def test_what_flows_through_all_layers():
    model = models.build(models.preset("vit-nano", image=8, patch=4, layers=3, dim=32, heads=2)).eval()
    x = torch.randn(2, 3, 8, 8)
    w = weights(model, pixel_values=x)
    assert w.shape == (3, 2, 2, 5, 5)
    torch.testing.assert_close(w.sum(-1), torch.ones(3, 2, 2, 5))
    flow = rollout(w)
    torch.testing.assert_close(flow.sum(-1), torch.ones(2, 5))
    half = [0.5 * m.mean(1) + 0.5 * torch.eye(5) for m in w]
    torch.testing.assert_close(flow, half[2] @ half[1] @ half[0])
    with pytest.raises(ValueError, match="forms no weights"):
        weights(models.build(models.preset("vit-nano", image=8, patch=4, kernel="performer")), pixel_values=x)


def test_convolutions_beside_patches():
    """A residual block by hand; a convolutional stem gives as many places as patches do; both train on."""
    model = shaken(models.build(models.ConvNet(widths=(4, 6), depth=1, image=8, channels=1, labels=3)), 0.3, True)
    x = torch.randn(2, 1, 8, 8)
    F = torch.nn.functional
    y = torch.relu(model.norm(model.stem(x)))
    for b in model.blocks:
        z = torch.relu(b.norms[0](F.conv2d(y, b.first.weight, None, b.first.stride, 1)))
        y = torch.relu(b.norms[1](F.conv2d(z, b.second.weight, None, 1, 1)) + b.short(y))
    torch.testing.assert_close(model(x)["logits"], model.head(y.mean((2, 3))))
    plain = models.build(models.ConvNet(widths=(4, 6), depth=1, image=8, residual=False))
    assert all(b.short is None for b in plain.blocks)
    stem = models.build(models.preset("vit-nano", image=16, patch=4, stem="convs"))
    assert stem(torch.randn(1, 3, 16, 16))["hidden"].shape == (1, 17, 96)
    for call, message in (
        (lambda: models.preset("vit-nano", image=18, patch=6, stem="convs"), "a power of 2"),
        (lambda: models.ConvNet(image=2, widths=(4, 4, 4)), "3 stages need at least 4 pixels"),
        (lambda: plain(torch.randn(1, 1, 8, 8)), "they must be"),
        (lambda: models.preset("resnet-20", widths=5), "widths"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_augmentation_by_kornia_is_drawn_by_the_step():
    cfg = models.preset("vit-nano", image=16, patch=4, labels=2, label_names=("a", "b"))
    task = objectives.TASKS["images"](cfg, augment="mild")
    model = models.build(cfg)
    seen = []
    model.embed.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    items = [{"pixels": torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8), "label": n % 2} for n in range(4)]
    batch = task.pairs(items, np.random.default_rng(0))
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        task.loss(model, batch)
    assert seen[0].equal(seen[1]) and not seen[0].equal(seen[2])
    with torch.no_grad():
        task.loss(model, batch)
    assert seen[3].equal(batch.inputs["pixel_values"])  # nothing is drawn where nothing is learnt
    with pytest.raises(ValueError, match="augment='wild' is not one of none, mild"):
        objectives.TASKS["images"](cfg, augment="wild")


@pytest.mark.parametrize("position", ["learned", "rope2d(width=2)", "sinusoid2d"])
def test_the_last_block_for_the_class_token_alone_is_the_same(position):
    """Logits and every gradient; refused, by doing all of it, where something else is read."""
    cfg = models.preset("vit-nano", image=8, patch=4, dim=32, heads=2, layers=3, position=position)
    if position.startswith("rope2d"):
        cfg = models.replace(cfg, position="rope2d(width=2, skip=1)")
    model = models.build(cfg).double()
    x = torch.randn(3, 3, 8, 8).double()
    gradients = []
    for whole in (True, False):
        model.zero_grad()
        out = model(pixel_values=x, whole=whole)
        out["logits"].square().sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None} | {"/logits": out["logits"].detach()}
        )
    assert out["hidden"].shape == (3, 1, 32) and gradients[0].keys() == gradients[1].keys()
    for name, g in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], g, atol=1e-12, rtol=0)
    mean = models.build(models.replace(cfg, pooling="mean"))
    assert not mean.narrow() and mean(pixel_values=x.float(), whole=False)["hidden"].shape == (3, 5, 32)
