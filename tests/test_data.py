"""Text in, tokens out: reading, tokenizers, shards, packing, pairs, registry."""

import gzip
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
import torch

from qkv import data
from qkv.data import batches, registry, shards, tasks, text
from qkv.data import tokenizer as tokenizers
from qkv.data.text import DataError

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Äpfel und Öl, naïve café 😀", "def f(x):\n    return x ** 2\n"] * 30


def test_files_folders_globs_gz_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as f:
        f.write("three")
    (tmp_path / "c.jsonl").write_text('{"body": "four", "id": 1}\n\n{"body": "five", "id": 2}\n')
    read = lambda s, **k: list(text.documents(str(s), **k))
    assert read(tmp_path / "a.txt") == ["one\ntwo\n"] and read(tmp_path / "a.txt", split="line") == ["one", "two"]
    assert read(tmp_path / "*.gz") == ["three"] and read(tmp_path / "c.jsonl", field="body") == ["four", "five"]
    assert read(tmp_path, field="body") == ["one\ntwo\n", "three", "four", "five"]
    assert text.pairs(tmp_path / "a.txt", tmp_path / "a.txt") == [("one", "one"), ("two", "two")]


BAD = {
    "there is no file": lambda p: list(text.documents(str(p / "none.txt"))),
    "no file matches": lambda p: list(text.documents(str(p / "*.xyz"))),
    "is empty": lambda p: list(text.documents(str(_file(p, "e.txt", b"")))),
    "byte 0xff at offset 3": lambda p: list(text.documents(str(_file(p, "u.txt", b"abc\xffd")))),
    "line 2: not valid JSON": lambda p: list(text.documents(str(_file(p, "j.jsonl", b'{"text": "a"}\n{oops\n')))),
    "no field 'text' \\(it has body\\)": lambda p: list(text.documents(str(_file(p, "k.jsonl", b'{"body": "a"}\n')))),
    "cannot be read": lambda p: list(text.documents(str(_file(p, "z.txt.gz", b"not gzip")))),
    "has 2 lines and .* has 1": lambda p: text.pairs(_file(p, "s", b"a\nb\n"), _file(p, "t", b"c\n")),
    "holds no text files": lambda p: list(text.documents(str(_folder(p)))),
}


def _file(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def _folder(p):
    (p / "empty").mkdir()
    return p / "empty"


@pytest.mark.parametrize("reason", BAD)
def test_bad_input_is_named(reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        BAD[reason](tmp_path)


def test_bad_bytes_are_replaced_on_request(tmp_path):
    assert list(text.documents(str(_file(tmp_path, "u.txt", b"abc\xffd")), errors="replace")) == ["abc\ufffdd"]


@pytest.mark.parametrize("kind", [k for k in tokenizers.KINDS if k != "items"])
def test_tokenizers_train_save_and_load(kind, tmp_path):
    t = tokenizers.train(kind, iter(TEXTS), 320)
    assert [t.token(i) for i in (t.pad, t.unk, t.cls, t.sep, t.mask, t.bos, t.eos)] == tokenizers.SPECIAL
    for x in TEXTS[:3]:
        ids = t.encode(x)
        if kind in ("bpe", "char"):
            assert t.decode(ids) == x
        assert t.encode_all([x, x]) == [ids, ids]
    t.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.digest() == t.digest() and again.encode(TEXTS[0]) == t.encode(TEXTS[0])
    assert kind == "char" or len(t) <= 320


def test_tokenizer_files_of_other_kinds(tmp_path):
    bpe = tokenizers.train("bpe", iter(TEXTS), 320)
    model = json.loads(bpe.engine.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    assert tokenizers.load(tmp_path / "vocab.json").encode(TEXTS[1]) == bpe.encode(TEXTS[1])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nquick\n##ly\n", encoding="utf-8")
    bert = tokenizers.load(tmp_path / "vocab.txt")
    assert bert.encode("The quickly zzz") == [5, 6, 7, 1] and bert.pad == 0
    with pytest.raises(DataError, match="not a SentencePiece model"):
        tokenizers.load(_file(tmp_path, "x.model", b"\x0a\xff\xff"))
    with pytest.raises(DataError, match="needs merges.txt"):
        (tmp_path / "merges.txt").unlink()
        tokenizers.load(tmp_path / "vocab.json")


def test_sentencepiece_models_equal_the_library(tmp_path):
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 20), encoding="utf-8")
    for kind, fallback in (("unigram", False), ("bpe", True)):
        prefix = str(tmp_path / kind)
        sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text.txt"), model_prefix=prefix, vocab_size=400 if fallback else 80,
                                                 model_type=kind, byte_fallback=fallback, hard_vocab_limit=False, minloglevel=2)  # fmt: skip
        theirs, mine = sentencepiece.SentencePieceProcessor(prefix + ".model"), tokenizers.load(prefix + ".model")
        for x in [*TEXTS[:3], "  two  spaces ", "日本語"]:
            assert mine.encode(x) == theirs.encode(x), (kind, x)


def test_real_sentencepiece_models_equal_the_library(shared):
    import sentencepiece

    lines = text.read_text(shared / "cls_sst2" / "dev.tsv").split("\n")[:300]
    for path in (shared / "tokenizers/t5/spiece.model", shared / "tokenizers/mistral/tokenizer.model.v1"):
        theirs, mine = sentencepiece.SentencePieceProcessor(str(path)), tokenizers.load(path)
        assert all(mine.encode(x) == theirs.encode(x) for x in lines)


def test_real_gpt2_and_bert_files(shared):
    gpt2 = tokenizers.load(shared / "tokenizers/gpt2")
    assert len(gpt2) == 50257 and gpt2.encode("Hello world") == [15496, 995] and gpt2.eos == 50256
    bert = tokenizers.load(shared / "tokenizers/bert")
    assert bert.encode("hello world!") == [7592, 2088, 999] and (bert.cls, bert.sep, bert.mask, bert.pad) == (101, 102, 103, 0)


def test_shards_are_reused_until_something_changes(tmp_path):
    t = tokenizers.train("char", iter(TEXTS))
    calls = []
    texts = lambda: (calls.append(1) or x for x in TEXTS)
    a = shards.build(texts(), t, "k")
    first = len(calls)
    b = shards.build(texts(), t, "k")
    assert len(calls) == first == len(TEXTS) and np.array_equal(a.ids, b.ids)
    assert len(a) == sum(len(x) + 1 for x in TEXTS) and a.nbytes == sum(len(x.encode()) for x in TEXTS)
    shards.build(texts(), t, "other")
    assert len(calls) == 2 * first
    damaged = next((shards.cache_folder() / "shards").glob("*/ids.bin"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with pytest.raises(DataError, match="is damaged"):
        for folder in (shards.cache_folder() / "shards").iterdir():
            shards.read(folder)


def _windows(length=8, seed=3, **kw):
    ends = np.array([5, 12, 40, 60])
    return batches.Windows(shards.Shards(np.arange(60), ends, 60), length, seed=seed, **kw)


def test_windows_are_a_function_of_seed_and_step():
    w = _windows()
    assert np.array_equal(w.starts_of(3, 9), np.concatenate([_windows().starts_of(i, 1) for i in range(3, 12)]))
    assert not np.array_equal(w.starts_of(0, 7), _windows(seed=4).starts_of(0, 7))
    for e in range(3):  # an epoch reads every window once
        starts = np.sort(w.starts_of(e * len(w), len(w)))
        assert np.array_equal(np.diff(starts), np.full(len(w) - 1, 8))


def test_packed_rows_know_their_documents():
    ids, documents, position = _windows().rows(np.array([0, 16]))
    assert ids[0].tolist() == list(range(8))
    assert documents.tolist() == [[0] * 5 + [1] * 3, [0] * 8] and position[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert _windows().rows(np.array([16, 20]))[1] is None  # one document a row: no mask is needed
    assert _windows(across=True).rows(np.array([0, 16]))[1] is None
    with pytest.raises(DataError, match="60 tokens, fewer than the 61"):
        _windows(61)


def test_pairs_keep_their_budget_and_cover_an_epoch():
    rows = [([1] * (1 + i % 17), [2] * (1 + i % 13)) for i in range(500)]
    p = batches.Pairs(rows, tokens=128, seed=1)
    first = [p.batch(i) for i in range(len(p.epoch(0)))]
    assert sorted(map(str, sum(first, []))) == sorted(map(str, rows))
    assert all(max(max(len(a), len(b)) for a, b in g) * len(g) <= 128 for g in first)
    again = batches.Pairs(rows, tokens=128, seed=1)
    assert again.batch(len(first) + 3) == p.batch(len(first) + 3) and again.batch(0) == first[0]


def test_held_out_documents_are_chosen_by_hash(tmp_path):
    rows = [json.dumps({"text": f"document number {i} " * 3}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(rows[:200])))
    a, b = (data.open_corpus(data.Data(source=str(tmp_path / n), holdout=0.1)) for n in ("a.jsonl", "b.jsonl"))
    train, valid = set(a.train()), set(a.valid())
    assert not train & valid and len(train) + len(valid) == 300 and 15 < len(valid) < 45
    assert set(b.valid()) <= valid  # neither order nor neighbours matter
    (tmp_path / "one.txt").write_text("0123456789" * 10)
    one = data.open_corpus(data.Data(source=str(tmp_path / "one.txt"), holdout=0.1))
    assert list(one.train()) == ["0123456789" * 9] and list(one.valid()) == ["0123456789"]


def test_tasks_follow_their_rules():
    rule = {
        "copy": lambda q: q,
        "reverse": lambda q: q[::-1],
        "sort": lambda q: "".join(sorted(q)),
        "addition": lambda q: str(sum(map(int, q.split("+")))),
    }
    for name in tasks.TASKS:
        rows = tasks.make(name, 200, 5)
        assert len(dict(rows)) == 200 and rows == tasks.make(name, 200, 5) and rows != tasks.make(name, 200, 6)
        if name in rule:
            assert all(rule[name](q) == a for q, a in rows)
    assert ("1 January 2000", "2000-01-01") in tasks.make("date", 250_000) and tasks.make("date", 3)[0][1].count("-") == 2


class _Handler(http.server.BaseHTTPRequestHandler):
    content, cut = b"", None

    def do_GET(self):
        body = self.content
        start = 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.server.ranges.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.cut] if self.cut and not start else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("QKV_DATA", raising=False)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.ranges = []
    threading.Thread(target=httpd.serve_forever, daemon=True).start()

    def publish(content, digest=None):
        _Handler.content = content
        file = registry.File(
            "set/part.txt", f"http://127.0.0.1:{httpd.server_port}/part.txt", digest or hashlib.sha256(content).hexdigest()
        )
        monkeypatch.setitem(registry.PUBLISHED, "small", registry.Published("a test set", "text", "ours", {"train": file}))

    yield publish, httpd
    httpd.shutdown()


def test_published_sets_are_fetched_once_checked_and_resumed(server):
    publish, httpd = server
    content = b"some text to learn from\n" * 1000
    publish(content)
    _Handler.cut = 5000
    with pytest.raises(DataError):  # the connection broke: what came is kept aside
        registry.fetch("small", "train")
    _Handler.cut = None
    path = registry.fetch("small", "train")
    assert path.read_bytes() == content and httpd.ranges == [5000]
    httpd.shutdown()
    assert registry.fetch("small", "train") == path  # no network is needed any more


def test_a_wrong_hash_and_no_network_say_what_to_do(server, monkeypatch, tmp_path):
    publish, httpd = server
    publish(b"tampered", "0" * 64)
    with pytest.raises(DataError, match="SHA-256"):
        registry.fetch("small", "train")
    monkeypatch.setitem(
        registry.PUBLISHED, "small", registry.Published("x", "text", "y", {"train": registry.File("s/p.txt", "http://127.0.0.1:9/p", "0")})
    )
    with pytest.raises(DataError, match="cannot be reached.*put it at"):
        registry.fetch("small", "train")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/p.txt").write_text("local")
    monkeypatch.setenv("QKV_DATA", str(tmp_path))
    assert registry.fetch("small", "train").read_text() == "local"


def test_published_hashes_are_those_of_the_real_files(shared):
    for name, published in registry.PUBLISHED.items():
        for part, file in published.files.items():
            assert registry.digest(registry.fetch(name, part), file) == file.sha256, (name, part)


def test_an_archive_is_known_by_its_members_however_they_are_packed(tmp_path):
    import zipfile

    parts, found = {"b.wav": b"two", "a.wav": b"one"}, []
    for where, names, more in (
        ("x.zip", ["a.wav", "b.wav"], ""),
        ("y.zip", ["deep/b.wav", "deep/a.wav"], "deep/notes.md"),
        ("z.zip", ["a.wav"], ""),
    ):
        with zipfile.ZipFile(tmp_path / where, "w") as z:
            for n in names:
                z.writestr(n, parts[n.rsplit("/", 1)[-1]])
            if more:
                z.writestr(more, "x")
        found.append(registry.digest(tmp_path / where, registry.File("", "", "", ".wav")))
    assert found[0] == found[1] != found[2]


def test_padding():
    ids, mask = batches.padded([[1, 2, 3], [4]], 0, "left")
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[True] * 3, [False, False, True]]
    assert torch.equal(batches.padded([[1, 2, 3], [4]], 9)[0], torch.tensor([[1, 2, 3], [4, 9, 9]]))
