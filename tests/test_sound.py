"""Sound: read as people have it, heard as the published models hear it, and turned into text."""

import itertools
import math

import numpy as np
import pytest
import torch
from reference import shaken, there_and_back

import qkv
from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import Data, audio, media
from qkv.data import tokenizer as tokenizers
from qkv.data.text import DataError
from qkv.evaluation import metrics
from qkv.generation import ctc, speech
from qkv.training import folder

W2V = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": [16, 12], "conv_kernel": [8, 3],
       "conv_stride": [4, 2], "conv_depthwise_kernel_size": 5, "vocab_size": 20, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
       "mask_time_prob": 0.0}  # fmt: skip
WHISPER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
           "decoder_ffn_dim": 40, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 12, "vocab_size": 61, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}  # fmt: skip


@pytest.mark.parametrize("more", [
    {"position_embeddings_type": "relative"},
    {"position_embeddings_type": "rotary", "hidden_act": "swish", "conv_bias": True},
    {"position_embeddings_type": None, "feat_extract_norm": "layer", "conv_bias": True, "layer_norm_eps": 1e-3, "feat_extract_activation": "relu"},
], ids=["relative", "rotary", "layer-norm"])  # fmt: skip
@torch.no_grad()
def test_wav2vec2_conformers_equal_the_reference(more, tmp_path):
    import transformers

    config = transformers.Wav2Vec2ConformerConfig(**W2V | more)
    theirs = shaken(transformers.Wav2Vec2ConformerForCTC(config))
    ours = there_and_back(theirs, tmp_path)
    x = torch.randn(2, 300)
    torch.testing.assert_close(ours(input_values=x)["logits"], theirs(x).logits, atol=1e-5, rtol=0)
    assert ours.front.length(300) == ours(input_values=x)["hidden"].shape[1]
    with pytest.raises(ValueError, match="a sound of 9 samples is too short for the front"):
        ours(input_values=x[:, :9])


@torch.no_grad()
def test_whisper_equals_the_reference_and_decodes_with_a_cache(tmp_path):
    import transformers

    theirs = shaken(transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER)))
    ours = there_and_back(theirs, tmp_path)
    x, ids = torch.randn(2, 8, 40), torch.randint(4, 61, (2, 9))
    wanted = theirs(input_features=x, decoder_input_ids=ids)
    out = ours(input_features=x, decoder_input_ids=ids)
    torch.testing.assert_close(out["logits"], wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(out["encoder_hidden"], wanted.encoder_last_hidden_state, atol=1e-5, rtol=0)
    assert ours.window == 40
    short = ours(input_features=x[:, :, :11], decoder_input_ids=ids)  # a shorter sound than the reference takes
    assert short["encoder_hidden"].shape == (2, 6, 32)
    greedy = qkv.generation.generate(ours, list(x), most=6)
    plain = qkv.generation.generate(ours, list(x), most=6, cached=False)
    asked = theirs.generate(x, max_new_tokens=6, do_sample=False, num_beams=1)
    assert greedy == plain
    for mine, row in zip(greedy, asked.tolist()):
        row = [i for i in row if i not in (2, 3)]
        assert mine[: len(row)] == row[: len(mine)] and mine
    with pytest.raises(ValueError, match="must be \\(batch, 8, frames\\)"):
        ours(input_features=x.mT, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="the encoder has 1 to 20 positions"):
        ours(input_features=torch.randn(1, 8, 44), decoder_input_ids=ids)


def test_the_spectrum_is_that_of_the_published_filters():
    """Against the reference's own extractor; its filters are Slaney's, as Whisper's are."""
    import transformers

    wave = torch.randn(24000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 0.3, 24000)
    for mels in (80, 128):
        extract = transformers.WhisperFeatureExtractor(feature_size=mels)
        np.testing.assert_allclose(audio.filters(mels).numpy(), extract.mel_filters.T, atol=1e-7)
        wanted = extract(wave.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"][0]
        torch.testing.assert_close(audio.log_mel(wave, mels, 3000).T, wanted, atol=1e-5, rtol=0)
    assert audio.log_mel(wave).shape == (150, 80)
    assert audio.log_mel(torch.zeros(10)).isfinite().all()  # silence, shorter than a window


def test_the_spectrum_of_a_real_sound(shared):
    published = np.load(shared / "tokenizers/whisper/mel_filters.npz")
    wave = torch.from_numpy(np.load(shared / "speech_jfk/jfk.npy"))
    power = torch.stft(wave, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1].abs() ** 2
    for mels in (80, 128):
        log = (torch.from_numpy(published[f"mel_{mels}"]) @ power).clamp(min=1e-10).log10()
        wanted = (torch.maximum(log, log.max() - 8) + 4) / 4
        torch.testing.assert_close(audio.log_mel(wave, mels).T, wanted, atol=1e-5, rtol=0)
    heard = audio.samples(shared / "speech_jfk/jfk.flac")  # 44.1 kHz, stereo
    assert len(heard) == len(wave) and (heard - wave).abs().max() < 2e-3


def test_sounds_are_read_as_people_have_them(tmp_path):
    """Rates, channels, formats; transcripts beside, in folders, in names, in tables; archives."""
    import zipfile

    import soundfile

    t = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    for name, data, rate in (
        ("a/left_1.wav", tone, 8000),
        ("a/right_2.flac", np.stack([tone, tone], 1), 44100),
        ("b/x/y.ogg", tone, 16000),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, data, rate)
    one = audio.samples(tmp_path / "a/left_1.wav")
    assert len(one) == 16000 and abs(int(torch.fft.rfft(one).abs().argmax()) - 440) <= 1
    assert len(audio.samples(tmp_path / "a/right_2.flac")) == round(8000 * 16000 / 44100)
    found = audio.read(Data(), tmp_path / "a", "train")
    assert [e.label for e in found] == ["left", "right"]
    assert [e.label for e in audio.read(Data(), tmp_path / "b", "train")] == ["x"]
    (tmp_path / "a/left_1.txt").write_text("hello there\n")
    assert audio.read(Data(), tmp_path / "a", "train")[0].label == "hello there"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for p in (tmp_path / "a").glob("*.*"):
            z.write(p, f"deep/{p.name}")
    zipped = audio.read(Data(), tmp_path / "a.zip", "train")
    assert [e.label for e in zipped] == ["hello there", "right"] and audio.samples(zipped[0].text).equal(one)
    (tmp_path / "t.csv").write_text("path,text\na/left_1.wav,one two\nb/x/y.ogg,three\n")
    rows = audio.read(Data(), tmp_path / "t.csv", "train")
    assert [e.label for e in rows] == ["one two", "three"] and audio.samples(rows[0].text).equal(one)
    train, valid = media.held(zipped, "right_*.flac")
    assert [e.label for e in train] == ["hello there"] and [e.label for e in valid] == ["right"]


def test_sounds_that_cannot_be_read_are_named(tmp_path):
    import soundfile

    (tmp_path / "words.wav").write_text("no sound")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    (tmp_path / "t.csv").write_text("path,text\nnone.wav,\nmissing.wav,hi\n")
    (tmp_path / "u.csv").write_text("path,text\nmissing.wav,hi\n")
    for call, message in (
        (lambda: audio.samples(tmp_path / "words.wav", "words.wav"), "words.wav: cannot be read as a sound"),
        (lambda: audio.samples(tmp_path / "none.wav", "none.wav"), "none.wav: holds no sound"),
        (lambda: audio.samples(np.full(9, np.nan)), "not numbers"),
        (lambda: audio.read(Data(), tmp_path / "gone", "train"), "is no file or folder here"),
        (lambda: audio.read(Data(), tmp_path / "t.csv", "train"), "has no text beside its file"),
        (lambda: audio.read(Data(), tmp_path / "u.csv", "train"), "there is no file missing.wav in"),
        (lambda: audio.log_mel(torch.zeros(0)), "without samples"),
        (lambda: media.held(audio.read(Data(), tmp_path / "words.wav", "x"), "*.mp3"), "it fits 0 of 1 files"),
        (lambda: objectives.task_of("transcribe").read(Data(), tmp_path / "words.wav", "x"), "has no transcript"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            call()
    assert main(["transcribe", "last", str(tmp_path / "gone.wav")]) == 2


def test_beams_find_the_likeliest_text_of_all_alignments():
    """Against every path written out."""
    for seed in range(20):
        log = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        total = {}
        for path in itertools.product(range(4), repeat=5):
            text = tuple(k for k, _ in itertools.groupby(path) if k)
            total[text] = total.get(text, 0.0) + math.exp(sum(log[t, i].item() for t, i in enumerate(path)))
        found = {tuple(ids): math.exp(p) for ids, p in ctc.prefixes(log, 0, 10**6)}
        assert set(found) == set(total) and all(abs(found[k] - total[k]) < 1e-9 for k in total)
        assert tuple(ctc.decode(log[None], [5], 0, beams=500)[0]) == max(total, key=total.get)
    log = torch.full((1, 6, 3), -5.0)
    log[0, range(6), [1, 1, 0, 1, 2, 2]] = 0.0
    assert ctc.decode(log, [6], 0) == [[1, 1, 2]] and ctc.decode(log, [3], 0) == [[1]]


def listener(**more):
    return models.SpeechEncoder(dim=32, heads=4, layers=2, hidden=48, features=20, front="subsampled(times=2, channels=4)", position="xl", conv="convolution(kernel=5)",
                                output="ctc", pad=0, vocab=9, length=64, **more)  # fmt: skip


@pytest.mark.parametrize("position", ["xl", "rope", "rope_before", "none"])
@torch.no_grad()
def test_a_sound_is_heard_the_same_alone_and_in_a_batch(position):
    import dataclasses

    model = shaken(models.build(dataclasses.replace(listener(), position=position))).double()
    x = torch.randn(3, 37, 20).double()
    lengths = torch.tensor([37, 22, 9])
    together = model(input_features=x, lengths=lengths)
    assert together["lengths"].tolist() == [10, 6, 3]
    for i, n in enumerate(lengths):
        alone = model(input_features=x[i : i + 1, :n])["logits"][0]
        torch.testing.assert_close(together["logits"][i, : len(alone)], alone, atol=1e-10, rtol=0)
    mask = torch.arange(37)[None] < lengths[:, None]
    assert model(input_features=x, attention_mask=mask)["logits"].equal(together["logits"])


def test_the_loss_of_ctc_is_that_of_each_sound_alone():
    model = models.build(listener()).double().eval()
    tokenizer = tokenizers.train("char", ["abc"], None)
    task = objectives.make_task("transcribe", models.replace(listener(), vocab=len(tokenizer), pad=tokenizer.pad), tokenizer, 64)
    model = models.build(task.config).double().eval()
    items = [
        {"ids": range(n), "frames": torch.randn(n, 20).double(), "target": t, "wanted": ""}
        for n, t in ((40, [8, 9]), (25, [9, 9]), (30, []))
    ]
    whole = task.loss(model, task.pairs(items, None))
    assert whole.count == 4
    parts = [task.loss(model, task.pairs([i], None)).value.item() for i in items]
    assert abs(whole.value.item() - sum(parts)) < 1e-4
    said = task.predict(model.float(), [i | {"frames": i["frames"].float()} for i in items])
    assert len(said) == 3
    r = np.random.default_rng(0)
    hidden = [task.hidden(torch.arange(800.0).view(40, 20), r) for _ in range(30)]
    changed = [(h != torch.arange(800.0).view(40, 20)) for h in hidden]
    assert all(c.all(0).sum() <= 6 and c.all(1).sum() <= 8 for c in changed) and any(c.any() for c in changed)
    with pytest.raises(ValueError, match="band=2"):
        objectives.make_task("transcribe(band=2)", task.config, tokenizer, 64)


def whisper_vocabulary(words=40):
    """A tokenizer laid out as the published ones: words, then special tokens, then 1,501 timestamps."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers import models as kinds

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
               "<|nospeech|>", "<|notimestamps|>", *(f"<|{i * 0.02:.2f}|>" for i in range(1501))]  # fmt: skip
    engine = Tokenizer(kinds.WordLevel({n: i for i, n in enumerate([*(f"w{i}" for i in range(words)), *special])}, unk_token="w0"))
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tokenizers.Tokenizer(engine), {n: engine.token_to_id(n) for n in special}


@torch.no_grad()
def test_times_are_written_by_the_published_rules(tmp_path):
    """One window, greedily, beside the reference; then a long sound, window by window."""
    import transformers

    tokenizer, ids = whisper_vocabulary()
    eos = ids["<|endoftext|>"]
    config = transformers.WhisperConfig(**WHISPER | dict(vocab_size=len(tokenizer), num_mel_bins=80, max_source_positions=1500, max_target_positions=80,
                                        eos_token_id=eos, pad_token_id=eos, bos_token_id=eos, decoder_start_token_id=ids["<|startoftranscript|>"],
                                        begin_suppress_tokens=None))  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    g = torch.Generator().manual_seed(3)
    for name, p in theirs.named_parameters():
        if "encoder.embed_positions" not in name:
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    ours, protocol = qkv.load(tmp_path), speech.Protocol.of(tokenizer)
    told = theirs.generation_config
    told.no_timestamps_token_id, told.is_multilingual = ids["<|notimestamps|>"], True
    told.lang_to_id = {f"<|{x}|>": ids[f"<|{x}|>"] for x in ("en", "de")}
    told.task_to_id = {x: ids[f"<|{x}|>"] for x in ("transcribe", "translate")}
    told.suppress_tokens, told.max_initial_timestamp_index = [i for i in protocol.special if i != eos], 50
    agreed = 0
    for seed in range(4):
        wave = torch.randn(480000, generator=torch.Generator().manual_seed(seed)) * 0.1 * (seed + 1)
        frames = speech.window(ours, wave, 0)
        prefix = protocol.prefix("en", "transcribe", True)
        mine, _ = speech.write(ours, frames, prefix, rules=lambda log, said: protocol.allow(log, said, eos), most=30)
        asked = theirs.generate(
            frames, language="en", task="transcribe", return_timestamps=True, max_new_tokens=30, do_sample=False, num_beams=1
        )
        asked = [i for i in asked[0].tolist() if i not in (*prefix, eos)]
        same = next((n for n, (a, b) in enumerate(zip(mine, asked)) if a != b), min(len(mine), len(asked)))
        pairs = [n for n in range(1, same) if mine[n - 1] >= protocol.first and mine[n] >= protocol.first]
        assert same == min(len(mine), len(asked)) or same == pairs[-1] + 1, (
            mine,
            asked,
        )  # the reference begins a new window after the last pair
        assert same >= 3 and mine[0] >= protocol.first
        agreed += same
        times = [i for i in mine if i >= protocol.first]
        assert times == sorted(times)
    assert agreed > 30
    heard, silent = speech.hear_language(ours, frames, protocol)
    assert set(heard) == {"en", "de"} and abs(sum(heard.values()) - 1) < 1e-5 and 0 <= silent <= 1
    found = speech.transcribe(ours, tokenizer, torch.randn(16000 * 41) * 0.1, language="de", words=True)
    assert all(0 <= s.start <= s.end <= 41.01 for s in found) and [s.start for s in found] == sorted(s.start for s in found)
    assert all(s.start - 0.03 <= a <= b <= s.end + 0.05 for s in found for _, a, b in s.words)
    with pytest.raises(ValueError, match="language='fr' is not one of de, en"):
        speech.transcribe(ours, tokenizer, torch.randn(16000), language="fr")


def test_segments_and_alignment():
    first = 100
    at = lambda t: first + round(t / speech.STEP)
    parts, ended = speech._segments([at(0.0), 1, 2, at(1.0), at(1.0), 3, at(2.5), at(2.5), 4], first, 30.0)
    assert [(a, b, t) for a, b, t in parts] == [(0.0, 1.0, [1, 2]), (1.0, 2.5, [3])] and ended == 2.5  # the last is heard again
    assert speech._segments([at(0.0), 1, at(9.0)], first, 12.0) == ([(0.0, 9.0, [1])], 0.0)
    assert speech._segments([], first, 12.0) == ([], 0.0)
    cost = torch.ones(3, 6)
    for i, j in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)):
        cost[i, j] = 0.0
    assert speech.warp(cost) == [0, 2, 4]
    assert speech.repeats("no no " * 60) > 2.4 > speech.repeats("a plain sentence, said once")


def test_errors_of_words_and_letters():
    assert metrics.edits("kitten", "sitting") == 3 and metrics.edits([], ["a"]) == 1
    out = metrics.transcripts(["one two", "three"], ["one too", "three"])
    assert out == {"right": 0.5, "wer": 1 / 3, "cer": 1 / 12}


def test_telephone_keys_are_learnt_resumed_and_transcribed(tmp_path, capsys, monkeypatch):
    """From the command line, by CTC and by a decoder; resuming is bit for bit."""
    import json

    import soundfile

    whole = audio.dial("train", 60)
    assert {c for e in whole for c in e.label} == set("0123456789*#") and audio.dial("valid")[0].label != whole[0].label
    monkeypatch.setattr(audio, "dial", lambda part: whole[:40] if part == "train" else whole[40:])
    common = ("batch=8", "threads=1", "precision=exact", "schedule=inverse_sqrt", "warmup=5", "eval_every=50")
    small = {
        "conformer-nano": ("dim=32", "layers=1", "heads=2", "hidden=48", "features=16", "lr=5e-3"),
        "whisper-nano": (
            "dim=32",
            "layers=1",
            "decoder_layers=1",
            "heads=2",
            "decoder_heads=2",
            "hidden=48",
            "decoder_hidden=48",
            "features=16",
        ),
    }
    for name, fields in small.items():
        assert main(["train", name, *fields, *common, "steps=12"]) == 0
        run = folder.find("last")
        rows = folder.read_metrics(run / "metrics.jsonl")
        held = [m["valid_loss"] for m in rows if "valid_loss" in m]
        assert held[-1] < 0.97 * held[0]
        losses = [m["loss"] for m in rows if "loss" in m]
        assert main(["train", name, *fields, *common, "steps=5"]) == 0
        assert main(["train", "last", "steps=12"]) == 0
        again = [m["loss"] for m in folder.read_metrics(folder.find("last") / "metrics.jsonl") if "loss" in m]
        assert again == losses
        assert main(["eval", str(run)]) == 0 and "wer" in capsys.readouterr().out
        soundfile.write(tmp_path / "a.wav", whole[3].text, 16000)
        picture, out = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
        assert main(["transcribe", str(run), str(tmp_path / "a.wav"), "words=true", f"picture={picture}", f"out={out}"]) == 0
        assert picture.stat().st_size > 5000 and list(json.loads(out.read_text())) == [str(tmp_path / "a.wav")]
    assert main(["train", "gpt-nano", "task=transcribe", "data=dial"]) == 2 and "needs the topology" in capsys.readouterr().err
    assert main(["train", "conformer-nano", "task=transcribe", "objective=causal", "data=pydoc"]) == 2
