"""qkv classify"""

HELP = """
qkv classify WHAT FILE ... [labels="a cat,a dog"] [key=value ...]

What images show: the labels of a classifier (ViT, ResNet) that was trained here or elsewhere, or any words that you name, by a CLIP.

  qkv classify last digit.png
  qkv classify openai/clip-vit-base-patch32 photo.jpg labels="a cat,a dog,a car"
  qkv classify last emoji.png labels="red apple,green apple" prompt="{}" picture=seen.png

keys: labels (by commas)  prompt ("a photo of a {}."; several by |, whose vectors are averaged; a label's own words alone for models
      trained here)  top (5)  picture (a .png file: where the model looked)
"""
KEYS = ("labels", "prompt", "top", "picture")


def run(words, verb):
    from pathlib import Path

    from .common import model_and_files
    from .main import options

    words = [f"labels={w.removeprefix('--labels=')}" if w.startswith("--labels=") else w for w in words]
    if "--labels" in words[:-1]:  # as many tools write it
        at = words.index("--labels")
        words = [*words[:at], f"labels={words[at + 1]}", *words[at + 2 :]]
    plain, given, _ = options(words, KEYS)
    what, files = model_and_files(plain, 'name a model and an image: qkv classify last photo.jpg labels="a cat,a dog"')
    top = given.get("top", 5)
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"top={top!r}: must be a whole number of at least 1")
    labels = [w.strip() for w in str(given.get("labels", "")).split(",") if w.strip()]
    if given.get("picture") and len(files) > 1:
        raise ValueError("picture= is of one image; give one")
    import torch

    from ..data import images
    from ..data.examples import Example
    from ..models.image import normalised
    from .common import open_model

    model, tokenizer, where = open_model(what)
    cfg = model.config
    kind = type(cfg).__name__
    seen = getattr(cfg, "picture", cfg)
    if kind not in ("ImageEncoder", "ConvNet", "TwoTowers") or cfg.output not in ("sequence", "similarity"):
        raise ValueError(f"{what} is of {kind} with output={cfg.output}; a classifier of images or a CLIP is needed")
    if kind == "TwoTowers" and not labels:
        raise ValueError('a CLIP chooses among the words you name: labels="a cat,a dog"')
    if kind != "TwoTowers" and labels:
        raise ValueError(f"{what} knows its own labels ({', '.join((cfg.label_names or ('none named',))[:10])}); labels= is for a CLIP")
    pixels = torch.stack([torch.from_numpy(images.pixels(Example(Path(f), where=f), seen.image, seen.channels).copy()) for f in files])
    x = normalised(pixels, where)
    with torch.inference_mode():
        if kind == "TwoTowers":
            published = type(tokenizer).__name__ != "NoTokens" and (where / "preprocessor_config.json").exists()
            texts = zero_shot(model, tokenizer, labels, str(given.get("prompt", "a photo of a {}." if published else "{}")).split("|"))
            scores = model.see(x) @ texts.T * model.scale.exp()
            names = labels
        else:
            scores = model(pixel_values=x)["logits"]
            names = cfg.label_names or [f"class {i}" for i in range(scores.shape[1])]
    for f, row in zip(files, scores.float().softmax(-1)):
        if len(files) > 1:
            print(f)
        for p, i in zip(*(t.tolist() for t in row.topk(min(top, len(row))))):
            print(f"{100 * p:6.2f} %  {names[i]}")
    if given.get("picture"):
        print(f"picture: {looked(model, x, pixels[0], given['picture'])}")
    return 0


def zero_shot(model, tokenizer, labels, prompts):
    """(labels, W) the mean vector of each label's prompts, of length 1 (CLIP, 2021, section 3.1.4)."""
    import torch

    from ..data.batches import padded

    cfg, rows = model.config, []
    for p in prompts:
        if "{}" not in p:
            raise ValueError(f"prompt={p!r} has no place {{}} for the label")
    for label in labels:
        for p in prompts:
            ids = [i for i in tokenizer.encode(p.replace("{}", label)) if i not in (cfg.bos, cfg.eos)]
            if len(ids) + 2 > cfg.length:
                raise ValueError(f"the label {label!r} has {len(ids)} tokens in {p!r}; the model reads {cfg.length - 2}")
            rows.append([cfg.bos, *ids, cfg.eos])
    ids, mask = padded(rows, cfg.pad if cfg.pad is not None else cfg.eos)
    vectors = model.read(ids, mask.long()).unflatten(0, (len(labels), len(prompts))).mean(1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def looked(model, x, pixels, path):
    """A picture of where the class token looked: in the last layer, and through all layers (rollout). Of a ViT or the tower of a CLIP."""
    from .. import pictures
    from ..interpret import rollout, weights

    tower = getattr(model, "picture", model)
    if type(tower.config).__name__ != "ImageEncoder":
        raise ValueError("a convolutional network has no attention to draw")
    w = weights(tower, pixel_values=x[:1])
    cfg = tower.config
    skip = int(cfg.class_token)
    row = (lambda a: a[0, skip:]) if skip else (lambda a: a.mean(0))
    square = lambda a: a.reshape(cfg.grid, cfg.grid)
    last = square(row(w[-1, 0].float().mean(0)))
    whole = square(row(rollout(w)[0]))
    return pictures.overlays(path, pixels.permute(1, 2, 0), {"last layer": last, "through all layers": whole})
