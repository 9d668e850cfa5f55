"""Small inputs for a model of any topology, so that one battery runs over all there are. A new topology without a row here fails its test."""

import torch

from qkv import models


def _ids(cfg, rows=2, length=7, vocab=None):
    return torch.randint(3, min(vocab or cfg.vocab, 50), (rows, length))


def _text(model):
    cfg = model.config
    if cfg.output in ("choice", "double"):
        return {"input_ids": torch.randint(3, min(cfg.vocab, 50), (2, 3, 7))}
    ids = _ids(cfg)
    if isinstance(cfg.eos, int) and cfg.eos < cfg.vocab:
        ids[:, -1] = cfg.eos
    return {"input_ids": ids}


def _pair(model):
    cfg = model.config
    if not getattr(cfg, "embedded", True):
        return {"inputs_embeds": torch.randn(2, 6, cfg.dim), "decoder_inputs_embeds": torch.randn(2, 5, cfg.dim)}
    given = _text(model)
    if cfg.output in ("sequence", "span"):
        return given
    return given | {"decoder_input_ids": _ids(cfg, length=5, vocab=cfg.target_vocab)}


def _pixels(model, rows=2):
    cfg = model.config
    return {"pixel_values": torch.randn(rows, cfg.channels, cfg.image, cfg.image)}


def _sound(model):
    cfg = model.config
    if model.front.samples:
        return {"input_features": torch.randn(2, 3000)}
    return {"input_features": torch.randn(2, 40, cfg.features or cfg.dim)}


def _heard(model):
    cfg = model.config
    features = torch.randn(2, cfg.features, model.window)
    return {"input_features": features, "decoder_input_ids": _ids(cfg, length=5)}


def _seen(model):
    cfg = model.config
    pixels = torch.randn(2, 1, cfg.picture.channels, cfg.picture.image, cfg.picture.image)
    return {"input_ids": _ids(cfg), "pixel_values": pixels, "image_attention_mask": torch.ones(2, 7, 1)}


def _steps(model):
    cfg, T = model.config, 4
    return {
        "states": torch.randn(2, T, cfg.states),
        "actions": torch.randn(2, T, cfg.actions),
        "returns_to_go": torch.randn(2, T, 1),
        "timesteps": torch.arange(T)[None].expand(2, -1),
    }


def _past(model):
    cfg = model.config
    tail = () if cfg.values == 1 else (cfg.values,)
    past = cfg.context + max(cfg.lags)
    given = {"past_values": torch.rand(2, past, *tail) + 0.5, "future_values": torch.rand(2, cfg.horizon, *tail) + 0.5}
    given |= {"past_time_features": torch.randn(2, past, cfg.times), "future_time_features": torch.randn(2, cfg.horizon, cfg.times)}
    return given | {"past_observed_mask": torch.ones_like(given["past_values"])}


def _calendar(model):
    cfg = model.config
    T = cfg.known + cfg.horizon
    return {
        "x_enc": torch.randn(2, cfg.context, cfg.values),
        "x_mark_enc": torch.ones(2, cfg.context, cfg.marks),
        "x_dec": torch.randn(2, T, cfg.values),
        "x_mark_dec": torch.ones(2, T, cfg.marks),
    }


def _rows(model):
    cfg = model.config
    x = torch.randn(8, cfg.features)
    for column, size in zip(cfg.categories, cfg.sizes, strict=True):
        x[:, column] = torch.randint(0, size, (8,))
    return {"x": x}


def _towers(model):
    words, picture = model.config.words, model.config.picture
    return {"input_ids": _ids(words), "pixel_values": torch.randn(2, picture.channels, picture.image, picture.image)}


def _looks(model):
    cfg = model.config
    return {
        "vision_features": torch.randn(2, 1, 1, 5, cfg.seen_dim),
        "hidden_states": torch.randn(2, 6, cfg.dim),
        "media_locations": torch.tensor([[True, *[False] * 5]] * 2),
    }


EXAMPLES = {
    "Decoder": _text,
    "Encoder": _text,
    "EncoderDecoder": _pair,
    "SpeechEncoderDecoder": _heard,
    "SpeechEncoder": _sound,
    "ConvNet": _pixels,
    "ImageEncoder": _pixels,
    "MaskedAutoencoder": _pixels,
    "TwoTowers": _towers,
    "SeeingDecoder": _seen,
    "TrajectoryDecoder": _steps,
    "SeriesEncoderDecoder": _past,
    "CalendarEncoderDecoder": _calendar,
    "LinearForecaster": lambda model: {"x_enc": torch.randn(2, model.config.context, 1)},
    "Recurrent": _text,
    "RecurrentEncoderDecoder": _pair,
    "TabularDecider": _rows,
    "Selector": _rows,
    "Perceptron": _rows,
    "CrossModal": _looks,
    "Drawer": lambda model: {"input_ids": _ids(model.config.words)},
    "Layer": lambda model: {"hidden_states": torch.randn(2, 6, model.config.dim)},
}


def example(model, seed=3):
    """Arguments of a forward pass of the model, the same for the same seed, in the model's own type."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = EXAMPLES[type(model.config).__name__](model)
    dtype = next(model.parameters()).dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}


def small(widest=144):
    """Names of the presets that are small enough to build by the dozen."""
    return [name for name in models.presets() if getattr(models.preset(name), "dim", 0) <= widest]


def answer(model, given, seed=7):
    """{name: tensor} of a forward pass under a fixed seed."""
    torch.manual_seed(seed)
    return {k: v for k, v in model(**given).items() if torch.is_tensor(v) and v.is_floating_point()}
