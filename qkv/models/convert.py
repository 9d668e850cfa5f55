"""Foreign formats, read into our models: llama2.c's .bin and CTranslate2's model.bin."""

import struct
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.files import CheckpointError
from . import CLASSES, build
from .encoder_decoder import EncoderDecoder


def llama2c(path):
    """(model, tokenizer pieces) of a first-generation llama2.c file. Raises CheckpointError where sizes do not agree.

    It rotates neighbouring pairs of channels; rows of q and k are put in the order of the published LLaMA layout (two halves), so the
    model saves and loads as LlamaForCausalLM.
    """
    path = Path(path)
    raw = path.read_bytes()
    if len(raw) < 28:
        raise CheckpointError(f"{path} is not a llama2.c file: {len(raw)} bytes")
    dim, hidden, layers, heads, kv, vocab, length = struct.unpack("<7i", raw[:28])
    shared = vocab > 0
    vocab = abs(vocab)
    if not all(0 < x < 1 << 24 for x in (dim, hidden, layers, heads, kv, vocab, length)) or heads % kv or dim % heads:
        raise CheckpointError(f"{path} is not a llama2.c file: its header says dim={dim}, layers={layers}, heads={heads}, kv_heads={kv}")
    head = dim // heads
    sizes = [("token", (vocab, dim)), ("attn_norm", (layers, dim)), ("q", (layers, dim, dim)), ("k", (layers, kv * head, dim)),
             ("v", (layers, kv * head, dim)), ("o", (layers, dim, dim)), ("ffn_norm", (layers, dim)), ("gate", (layers, hidden, dim)),
             ("down", (layers, dim, hidden)), ("up", (layers, hidden, dim)), ("norm", (dim,)), ("cos", (length, head // 2)),
             ("sin", (length, head // 2))] + ([] if shared else [("out", (vocab, dim))])  # fmt: skip
    wanted = 28 + 4 * sum(int(np.prod(s)) for _, s in sizes)
    if len(raw) != wanted:
        raise CheckpointError(f"{path} has {len(raw)} bytes, its header describes {wanted}: it is truncated or another format")
    flat, at, parts = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), 0, {}
    for name, shape in sizes:
        n = int(np.prod(shape))
        parts[name] = flat[at : at + n].view(shape)
        at += n
    published = {"vocab_size": vocab, "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                 "num_key_value_heads": kv, "max_position_embeddings": length, "rms_norm_eps": 1e-5, "tie_word_embeddings": shared}  # fmt: skip
    model = build(CLASSES["LlamaForCausalLM"].read(published, "LlamaForCausalLM"), "LlamaForCausalLM")
    halves = lambda w: w.view(-1, head // 2, 2, dim).transpose(1, 2).reshape(-1, dim)
    state = {"embed.token.weight": parts["token"], "norm.weight": parts["norm"]}
    for i in range(layers):
        b = f"blocks.{i}."
        state |= {f"{b}attn.pre.weight": parts["attn_norm"][i], f"{b}ffn.pre.weight": parts["ffn_norm"][i],
                  f"{b}attn.f.q.weight": halves(parts["q"][i]), f"{b}attn.f.k.weight": halves(parts["k"][i])}  # fmt: skip
        state |= {f"{b}attn.f.{x}.weight": parts[x][i] for x in "vo"} | {
            f"{b}ffn.f.{x}.weight": parts[x][i] for x in ("gate", "up", "down")
        }
    state["head.out.weight"] = parts["token"] if shared else parts["out"]
    model.load_state_dict(state)
    return model.eval()


def llama2c_pieces(path, vocab):
    """[(piece bytes, score)] of a llama2.c tokenizer file."""
    raw, at, out = Path(path).read_bytes(), 4, []
    try:
        for _ in range(vocab):
            score, n = struct.unpack_from("<fi", raw, at)
            if n < 0 or at + 8 + n > len(raw):
                raise struct.error
            out.append((raw[at + 8 : at + 8 + n], score))
            at += 8 + n
    except struct.error:
        raise CheckpointError(f"{path} is truncated: it holds fewer than {vocab} pieces") from None
    return out


def ctranslate2(path):
    """An encoder-decoder from a CTranslate2 folder or its model.bin (binary version 2, float32, a pre-norm Transformer)."""
    path = Path(path)
    path = path / "model.bin" if path.is_dir() else path
    raw, at = path.read_bytes(), 0

    def take(form):
        nonlocal at
        try:
            values = struct.unpack_from("<" + form, raw, at)
        except struct.error:
            raise CheckpointError(f"{path} is truncated, or is no CTranslate2 model") from None
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def string():
        return take(f"{take('H')}s").rstrip(b"\0").decode()

    version = take("I")
    if version != 2:
        raise CheckpointError(f"{path}: CTranslate2 binary version {version} is not supported; 2 is")
    name, _ = string(), take("I")
    if name not in ("TransformerSpec", "TransformerBase", "TransformerBig"):
        raise CheckpointError(f"{path}: {name} is not supported; TransformerSpec, TransformerBase and TransformerBig are")
    variables = {}
    for _ in range(take("I")):
        key, rank = string(), take("B")
        shape = [take("I") for _ in range(rank)]
        width, count = take("BI")
        if width != 4 and count > 1:
            raise CheckpointError(f"{path}: {key} has {8 * width}-bit numbers; only float32 is supported")
        variables[key] = torch.frombuffer(bytearray(take(f"{width * count}s")), dtype=torch.float32 if width == 4 else torch.int8).view(
            shape
        )
    for _ in range(take("I") if at < len(raw) else 0):
        alias, variable = string(), string()
        variables[alias] = variables[variable]
    return _from_ct2(variables, 16 if name == "TransformerBig" else 8, path)


def _from_ct2(v, heads, path):
    count = lambda side: len({k.split("/")[1] for k in v if k.startswith(f"{side}/layer_") and "/layer_norm/" not in k[: len(side) + 12]})
    token = v["encoder/embeddings/weight"] if "encoder/embeddings/weight" in v else v["encoder/embeddings_0/weight"]
    target = v["decoder/embeddings/weight"]
    dim, heads = token.shape[1], next((int(v[k]) for k in ("num_heads", "encoder/num_heads") if k in v), heads)
    cfg = EncoderDecoder(
        vocab=len(token), target_vocab=len(target), dim=dim, layers=count("encoder"), decoder_layers=count("decoder"), heads=heads,
        hidden=v["encoder/layer_0/ffn/linear_0/weight"].shape[0], length=512, order="pre", final_norm=True, ffn="plain(relu)", norm_eps=1e-5,
        position="sinusoid(layout=fairseq, offset=1)", scaled=True, tie=False, lm_bias="trained", pad=0, bos=1, eos=2, start=1,
    )  # fmt: skip
    model = build(cfg)
    state = {"encoder_embed.token.weight": token, "decoder_embed.token.weight": target, "head.out.weight": v["decoder/projection/weight"]}
    state["head.out.bias"] = v.get("decoder/projection/bias", torch.zeros(len(target)))
    names = {"weight": "weight", "bias": "bias"}

    def linear(theirs, *ours):
        for leaf in names:
            for o, part in zip(ours, v[f"{theirs}/{leaf}"].chunk(len(ours))):
                state[f"{o}.{leaf}"] = part

    def norm(theirs, ours):
        state[f"{ours}.weight"], state[f"{ours}.bias"] = v[f"{theirs}/gamma"], v[f"{theirs}/beta"]

    for side in ("encoder", "decoder"):
        norm(f"{side}/layer_norm", f"{side}.norm")
        for i in range(count(side)):
            t, o = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            linear(f"{t}/self_attention/linear_0", *(f"{o}.attn.f.{x}" for x in "qkv"))
            linear(f"{t}/self_attention/linear_1", f"{o}.attn.f.o")
            norm(f"{t}/self_attention/layer_norm", f"{o}.attn.pre")
            if side == "decoder":
                linear(f"{t}/attention/linear_0", f"{o}.cross.f.q")
                linear(f"{t}/attention/linear_1", f"{o}.cross.f.k", f"{o}.cross.f.v")
                linear(f"{t}/attention/linear_2", f"{o}.cross.f.o")
                norm(f"{t}/attention/layer_norm", f"{o}.cross.pre")
            linear(f"{t}/ffn/linear_0", f"{o}.ffn.f.up")
            linear(f"{t}/ffn/linear_1", f"{o}.ffn.f.down")
            norm(f"{t}/ffn/layer_norm", f"{o}.ffn.pre")
    missing = model.load_state_dict(state, strict=False)
    wrong = [k for k in missing.missing_keys if "position" not in k] + missing.unexpected_keys
    if wrong:
        raise CheckpointError(f"{path} does not fit: {', '.join(wrong[:5])}")
    return model.eval()
