"""Published folders: old spellings in, bad files refused with what, where and what to do."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import qkv
from qkv import models
from qkv.checkpoints import files
from qkv.checkpoints.files import CheckpointError

SMALL = {"vocab": 61, "dim": 32, "layers": 2, "heads": 4, "length": 32}
BERT = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def gpt(tmp_path):
    model = qkv.create("gpt2", **SMALL).eval()
    qkv.save(model, tmp_path / "m")
    return model, tmp_path / "m"


def rewrite(folder, tensors=None, **config):
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (raw | config).items() if v != "DROP"}))


def test_hub_files_without_prefix_and_with_buffers_round_trip(gpt, tmp_path):
    model, folder = gpt
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    rewrite(folder, tensors, n_ctx=32, _name_or_path="somewhere")
    again = qkv.load(folder)
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids)["logits"], model(ids)["logits"])
    qkv.save(again, tmp_path / "b")
    saved = load_file(tmp_path / "b/model.safetensors")
    assert set(saved) == set(tensors) and all(torch.equal(saved[k], tensors[k]) for k in tensors)
    assert json.loads((tmp_path / "b/config.json").read_text())["n_ctx"] == 32


def test_old_bert_spelling_round_trips(tmp_path):
    model = qkv.create("BertForMaskedLM", **BERT).eval()
    qkv.save(model, tmp_path / "m")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in load_file(tmp_path / "m/model.safetensors").items()}  # fmt: skip
    old |= {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "cls.predictions.decoder.weight": old["bert.embeddings.word_embeddings.weight"].clone(),
    }
    rewrite(tmp_path / "m", old)
    again = qkv.load(tmp_path / "m")
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids)["logits"], model(ids)["logits"])
    qkv.save(again, tmp_path / "b")
    saved = load_file(tmp_path / "b/model.safetensors")
    assert set(saved) == set(old) and all(torch.equal(saved[k], old[k]) for k in old)


def test_an_output_matrix_of_its_own_wins_over_tying(tmp_path):
    model = qkv.create("T5ForConditionalGeneration", vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    qkv.save(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    own = torch.randn(61, 32)
    rewrite(tmp_path / "m", tensors | {"lm_head.weight": own})
    again = qkv.load(tmp_path / "m")
    assert torch.equal(again.head.out.weight, own) and torch.equal(again.encoder_embed.token.weight, tensors["shared.weight"])


def test_shards_are_read(gpt, tmp_path):
    model, folder = gpt
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, which in parts.items():
        save_file({n: tensors[n] for n in which}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, which in parts.items() for n in which}}))
    (folder / "model.safetensors").unlink()
    ids = torch.arange(9)[None]
    assert torch.equal(qkv.load(folder)(ids)["logits"], model(ids)["logits"])
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lists 'b.safetensors', which is not in"):
        qkv.load(folder)


def test_dtypes_are_kept_and_asked_for(gpt, tmp_path):
    model, folder = gpt
    assert next(qkv.load(folder, dtype=torch.float64).parameters()).dtype is torch.float64
    qkv.save(model.bfloat16(), tmp_path / "half")
    assert next(qkv.load(tmp_path / "half").parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize("fields", ({"position": "alibi"}, {"pattern": ["causal", "prefix(2)"]}, {"kv_heads": 2, "position": "rope(base=500.0)"},
                                    {"norm": "rms", "ffn": "gated(silu)", "order": "parallel"}, {"position": "sinusoid", "embed_norm": True}))  # fmt: skip
def test_a_replaced_slot_saves_in_our_own_layout(fields, tmp_path):
    model = qkv.create("gpt2", **SMALL, **fields).eval()
    qkv.save(model, tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["model_type"] == "qkv"
    again, ids = qkv.load(tmp_path / "m"), torch.arange(9)[None]
    assert again.config == model.config and torch.equal(again(ids)["logits"], model(ids)["logits"])


def _tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    rewrite(folder, tensors)


def _flip(folder):
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[2] ^= 0xFF
    file.write_bytes(raw)


def _nan(t):
    t["transformer.ln_f.weight"][3] = float("nan")


def _cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


REFUSED = {
    "the key 'n_layers' .* Did you mean 'n_layer'": lambda f: rewrite(f, n_layers=3),
    "scale_attn_weights=False is not supported": lambda f: rewrite(f, scale_attn_weights=False),
    "is not one that qkv loads. Did you mean 'GPT2LMHeadModel'": lambda f: rewrite(f, architectures=["GPT2LMHead"]),
    "architectures=\\[\\] is not one": lambda f: rewrite(f, architectures="DROP"),
    "layers='two': must be a whole number": lambda f: rewrite(f, n_layer="two"),
    "heads=5 does not divide dim=32": lambda f: rewrite(f, n_head=5),
    "activation 'sine' is not one of": lambda f: rewrite(f, activation_function="sine"),
    "left over: oops": lambda f: _tensors(f, lambda t: t.update(oops=torch.ones(1))),
    "missing: transformer.ln_f.bias": lambda f: _tensors(f, lambda t: t.pop("transformer.ln_f.bias")),
    "wpe.weight has the shape \\(5, 32\\), the config wants \\(32, 32\\)": lambda f: _tensors(
        f, lambda t: t.update({"transformer.wpe.weight": torch.ones(5, 32)})
    ),
    "ln_f.weight has 1 of 32 values that are not finite": lambda f: _tensors(f, _nan),
    "truncated": _cut,
    "header": _flip,
    "a pickle, which could run code": _pickle,
    "is not valid JSON": lambda f: (f / "config.json").write_text("{oops"),
    "config.json is missing": lambda f: (f / "config.json").unlink(),
    "has no model.safetensors": lambda f: (f / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_bad_folders_are_refused_with_the_reason(reason, gpt):
    _, folder = gpt
    REFUSED[reason](folder)
    with pytest.raises(ValueError, match=reason):
        qkv.load(folder)


def test_saving_never_destroys(gpt, tmp_path, monkeypatch):
    model, folder = gpt
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("precious")
    with pytest.raises(ValueError, match="holds something that is no checkpoint"):
        qkv.save(model, tmp_path / "photos")
    before = (folder / "model.safetensors").read_bytes()

    def fails(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:  # a save that fails half-way
        m.setattr(files, "write_tensors", fails)
        with pytest.raises(OSError, match="No space"):
            qkv.save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    qkv.save(model, folder)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


UNKNOWN = {
    "there is no preset 'gtp2'. Did you mean 'gpt2'": lambda: qkv.create("gtp2"),
    "has no field 'postion'. Did you mean 'position'": lambda: qkv.create("gpt2", postion="rope"),
    "kv_heads=5 does not divide heads=12": lambda: qkv.create("gpt2", kv_heads=5),
    "position='alibii': is not one of .* Did you mean 'alibi'": lambda: qkv.create("gpt2", position="alibii"),
    "rope takes no 'bse'": lambda: qkv.create("gpt-nano", position="rope(bse=3)"),
    "the key 'n_layers'": lambda: qkv.create("GPT2LMHeadModel", n_layers=2),
    "layers='x': must be a whole number": lambda: qkv.create("gpt2", layers="x"),
    "output='lmm': is not one of": lambda: qkv.create("gpt-nano", output="lmm"),
    "needs pooler=true": lambda: qkv.create("bert-nano", output="sequence", pooler=False),
    "either input_ids or inputs_embeds": lambda: qkv.create("gpt-nano")(),
    "has no token types": lambda: qkv.create("gpt-nano")(
        torch.zeros(1, 3, dtype=torch.long), token_type_ids=torch.zeros(1, 3, dtype=torch.long)
    ),
    "position 69 is beyond the 64 positions": lambda: qkv.create("gpt-nano")(torch.zeros(1, 70, dtype=torch.long)),
    "reads \\(batch, choices, tokens\\)": lambda: qkv.create("bert-nano", output="choice")(torch.zeros(1, 3, dtype=torch.long)),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_bad_calls_are_refused_with_the_reason(reason):
    with pytest.raises(ValueError, match=reason):
        UNKNOWN[reason]()


def test_published_sizes():
    known = {"gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "bert-base": 109_514_298, "llama-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248,
             "llama-3.2-1b": 1_235_814_400, "mistral-7b": 7_241_732_096, "t5-small": 60_506_624, "t5-v1.1-base": 247_577_856,
             "opus-mt-en-de": 74_410_496, "wmt19-en-de": 408_268_800, "gpt3-175b": 174_604_259_328}  # fmt: skip
    for name, count in known.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in qkv.create(name).parameters()) == count, name


def test_every_preset_builds_and_its_config_is_what_it_would_publish():
    for name in models.presets():
        cfg = models.preset(name)
        with torch.device("meta"):
            model = models.build(cfg, family=models.presets()[name][0])
        if models.presets()[name][1]:
            family = models.FAMILIES[models.presets()[name][0]]
            assert model.published, name
            assert family.read(family.write(cfg, model.published), model.published) == cfg or cfg.init != "normal", name


@pytest.mark.parametrize("options", ({}, {"norm_first": True}, {"activation": "gelu", "bias": False}), ids=("post", "pre", "no-biases"))
def test_torchs_own_transformer_is_equal(options, tmp_path):
    sizes = {"d_model": 32, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 3, "dim_feedforward": 48, "dropout": 0.0}
    theirs = torch.nn.Transformer(**sizes, **options, batch_first=True).double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    (tmp_path / "m").mkdir()
    save_file(theirs.state_dict(), tmp_path / "m/model.safetensors")
    (tmp_path / "m/config.json").write_text(
        json.dumps({"model_type": "torch-transformer", "architectures": ["Transformer"], **sizes, **options})
    )
    model = qkv.load(tmp_path / "m")
    src, tgt = torch.randn(2, 8, 32, dtype=torch.float64), torch.randn(2, 6, 32, dtype=torch.float64)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with torch.no_grad():
        causal = theirs.generate_square_subsequent_mask(6, dtype=torch.float64)
        want = theirs(src, tgt, tgt_mask=causal, src_key_padding_mask=mask == 0, memory_key_padding_mask=mask == 0)
        torch.testing.assert_close(model(src=src, tgt=tgt, src_mask=mask)["hidden"], want, rtol=0, atol=1e-10)


def test_a_tokenizer_of_another_model_is_refused(gpt):
    from qkv.cli.common import open_model
    from qkv.cli.main import main
    from qkv.data import tokenizer as tokenizers

    _, folder = gpt
    tokenizers.train("bpe", ["some text " * 50], 300).save(folder)
    with pytest.raises(ValueError, match="tokenizer has .* tokens, the model's vocabulary is 61"):
        open_model(str(folder))
    assert main(["generate", str(folder), "x"]) == 2


def test_a_hub_id_is_loaded_from_a_local_server(gpt, tmp_path):
    """The hub's own client against a server of ours: the real loading code, without the network."""
    import hashlib
    import http.server
    import threading

    model, folder = gpt
    content = {p.name: p.read_bytes() for p in folder.iterdir()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, body):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/someone/small"):
                data, kind = (
                    json.dumps(
                        {"_id": "1", "id": "someone/small", "sha": "a" * 40, "siblings": [{"rfilename": n} for n in content]}
                    ).encode(),
                    "application/json",
                )
                if "/tree/" in path:
                    data = json.dumps(
                        [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in content.items()]
                    ).encode()
            else:
                data, kind = content.get(path.rsplit("/", 1)[-1], b""), "application/octet-stream"
            self.send_response(200 if data else 404)
            for k, v in {
                "Content-Type": kind,
                "Content-Length": str(len(data)),
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                "X-Repo-Commit": "a" * 40,
            }.items():
                self.send_header(k, v)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "import qkv, torch; m = qkv.load('someone/small'); print(m(torch.arange(9)[None])['logits'].double().sum().item())"
    env = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    server.shutdown()
    assert out.returncode == 0, out.stderr[-2000:]
    assert float(out.stdout) == pytest.approx(model(torch.arange(9)[None])["logits"].double().sum().item(), abs=1e-4)
    with pytest.raises(CheckpointError, match="no folder here, and the hub did not give it"):
        qkv.load("someone/absent")
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)


def test_files_with_other_heads_parts_load_and_save_them_back(tmp_path):
    """bert-base-uncased is a masked language model whose file also holds a pooler and the next-sentence head."""
    whole = qkv.create("BertForPreTraining", **BERT)
    qkv.save(whole, tmp_path / "m")
    rewrite(tmp_path / "m", architectures=["BertForMaskedLM"])
    model, ids = qkv.load(tmp_path / "m"), torch.arange(9)[None]
    assert torch.equal(model(ids)["logits"], whole.eval()(ids)["prediction_logits"])
    qkv.save(model, tmp_path / "b")
    a, b = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_base_classes_read_both_spellings(gpt):
    model, folder = gpt
    rewrite(folder, architectures=["GPT2Model"])
    assert torch.equal(qkv.load(folder)(torch.arange(9)[None])["hidden"], model(torch.arange(9)[None])["hidden"])


def test_two_copies_of_one_tensor_stay_tied_in_any_dtype(gpt):
    _, folder = gpt
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    for dtype in (torch.float32, torch.bfloat16):
        model = qkv.load(folder, dtype=dtype)
        assert model.head.out.weight is model.embed.token.weight
    rewrite(folder, load_file(folder / "model.safetensors") | {"lm_head.weight": torch.randn(61, 32)})
    assert qkv.load(folder).head.out.weight is not qkv.load(folder).embed.token.weight


def test_t5_files_with_their_historical_extras_load(tmp_path):
    small = dict(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    qkv.save(qkv.create("T5ForConditionalGeneration", **small), tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    extra = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.randn(32, 4)}
    twice = {f"{s}.embed_tokens.weight": tensors["shared.weight"].clone() for s in ("encoder", "decoder")}
    rewrite(tmp_path / "m", tensors | extra | twice, architectures=["T5WithLMHeadModel"], n_positions=512)
    qkv.load(tmp_path / "m")
    rewrite(tmp_path / "m", tensors | twice | {"encoder.embed_tokens.weight": torch.randn(61, 32)})
    with pytest.raises(CheckpointError, match="other values than the tensor it shall be shared with"):
        qkv.load(tmp_path / "m")
    encoder = qkv.create("T5EncoderModel", **small)
    qkv.save(encoder, tmp_path / "e")
    tensors = load_file(tmp_path / "e/model.safetensors")
    rewrite(tmp_path / "e", tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()})
    qkv.load(tmp_path / "e")


PUBLISHED = {  # keys of real config.json files that change nothing, or must be understood
    "MarianMTModel": {
        "_num_labels": 3,
        "bad_words_ids": [[58100]],
        "normalize_before": False,
        "num_hidden_layers": 6,
        "add_bias_logits": False,
    },
    "GPT2LMHeadModel": {
        "n_ctx": 1024,
        "n_special": 0,
        "predict_special_tokens": True,
        "task_specific_params": {},
        "is_encoder_decoder": False,
    },
    "LlamaForCausalLM": {"eos_token_id": [128001, 128008], "pretraining_tp": 1, "rope_scaling": None, "rope_theta": 10000.0},
    "BertForMaskedLM": {"gradient_checkpointing": False, "position_embedding_type": "absolute", "classifier_dropout": None},
    "FSMTForConditionalGeneration": {"langs": ["en", "de"], "pad_token_id": 0},
}


@pytest.mark.parametrize("cls", PUBLISHED)
def test_keys_of_published_configs_are_understood(cls):
    cfg = models.CLASSES[cls].read(PUBLISHED[cls], cls)
    if cls.startswith("Llama"):
        assert cfg.eos == (128001, 128008) and models.CLASSES[cls].write(cfg, cls)["eos_token_id"] == [128001, 128008]
    if cls.startswith("FSMT"):
        assert cfg.position == "sinusoid(layout=fairseq, offset=1, zero=0)"


def test_masks_of_another_meaning_are_refused():
    model, ids = qkv.create("gpt-nano"), torch.zeros(3, 5, dtype=torch.long)
    for mask, reason in ((torch.ones(5, 5), "the mask has the shape"), (torch.full((3, 5), -1e9), "1 for a token and 0 for padding")):
        with pytest.raises(ValueError, match=reason):
            model(ids, attention_mask=mask)


def test_flops_of_experts_and_of_shared_layers():
    from qkv.models import account, preset

    flops = lambda name, **fields: account.flops(account.blank(preset(name, **fields)))
    dense, sparse = flops("gpt-nano", ffn="plain(relu)"), flops("gpt-nano", ffn="experts(8, relu)")
    routers = 4 * 2 * 128 * 8
    assert sparse["feed-forward"] == dense["feed-forward"] + routers  # one expert a token, and the router
    shared, own = flops("albert-nano"), flops("albert-nano", groups=2)
    assert shared == own


def test_a_header_that_begins_as_a_pickle_does_is_read(tmp_path):
    """640 bytes are 0x0280, and a pickle's first bytes are 80 02."""
    from safetensors.torch import save_file

    for pad in range(640):
        save_file({"w": torch.arange(3.0)}, tmp_path / "x.safetensors", {"note": "n" * pad})
        if (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    assert (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert files.read_tensors(tmp_path / "x.safetensors")["w"].tolist() == [0, 1, 2]
