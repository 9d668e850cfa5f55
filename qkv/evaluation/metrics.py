"""Metrics of tasks: those of classes are scikit-learn's, those of translations sacrebleu's."""

import collections
import importlib
import re
import string
import typing
import warnings
from collections.abc import Callable, Sequence

from ..words import nearest

# Scripts without spaces between words: Chinese characters, which sacrebleu's zh takes apart; and kana, Thai,
# Lao, Burmese and Khmer, which it does not.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OTHER = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


def need(name: str, extra: str) -> typing.Any:
    """A library that an extra brings; raises ValueError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this metric needs {name.split('.')[0]}: pip install 'qkv[{extra}]'") from None


def classification(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """{accuracy, f1, mcc} of labels. f1: the mean over the labels that occur, as wanted or as said. mcc: 0
    where there is but one."""
    from sklearn import metrics as m

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        return {
            "accuracy": float(m.accuracy_score(truth, said)),
            "f1": float(m.f1_score(truth, said, average="macro", zero_division=0.0)),
            "mcc": float(m.matthews_corrcoef(truth, said)),
        }


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """{(type, first token, last token)} of a sentence's BIO tags. An I- that goes on from nothing begins an
    entity, as in conlleval."""
    out, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        inside = tag[:2] == "I-" and kind == tag[2:]
        if kind is not None and not inside:
            out.add((kind, start, i - 1))
            kind = None
        if tag != "O" and not inside:
            start, kind = i, tag[2:]
    return out


def entity_f1(truth: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """{f1, precision, recall} of whole entities, given the BIO tags of sentences: type and both ends must
    agree (CoNLL-2003)."""
    right = wanted = found = 0
    for a, b in zip(truth, said, strict=True):
        of_a, of_b = entities(a), entities(b)
        right, wanted, found = right + len(of_a & of_b), wanted + len(of_a), found + len(of_b)
    return {
        "f1": 2 * right / (wanted + found) if right else 0.0,
        "precision": right / found if found else 0.0,
        "recall": right / wanted if wanted else 0.0,
    }


def plain(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and extra spaces (SQuAD, 2016, section 6.1)."""
    text = text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def overlap(said: str, truth: str) -> float:
    """F1 of the words that two answers share; two without a word are equal (SQuAD 2.0)."""
    a, b = plain(said).split(), plain(truth).split()
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def same(said: str, truth: str) -> float:
    """1 where two answers have the same words, else 0."""
    return float(plain(said) == plain(truth))


def answers(truth: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, float]:
    """{f1, exact} of answers, each by the best of its right ones. A right one without a word does not
    count; where there is no other, "" is right (SQuAD 2.0)."""
    right = [[w for w in some if plain(w)] or [""] for some in truth]

    def mean(score: Callable[[str, str], float]) -> float:
        best = [max(score(s, w) for w in some) for some, s in zip(right, said, strict=True)]
        return sum(best) / max(1, len(best))

    return {"f1": mean(overlap), "exact": mean(same)}


def tokenize_for(references: Sequence[str]) -> str:
    """The name of sacrebleu's tokenizer that fits references: 13a where words stand apart; where most
    letters are of a script that puts no space between words, and there are none, zh for Chinese and char
    for others."""
    text = "\n".join(references)
    han, other = (len(re.findall(f"[{script}]", text)) for script in (HAN, OTHER))
    if 2 * (han + other) <= sum(map(str.isalpha, text)) or 4 * text.count(" ") > han + other:
        return "13a"
    return "char" if 10 * other > han + other else "zh"


def bleu(tokenize: str | None, references: Sequence[str]) -> tuple[typing.Any, str]:
    """(sacrebleu's BLEU, the name of its tokenizer). tokenize: a name; auto, what fits the references;
    none, or None, spaces alone.

    Raises ValueError for a name that there is not, or whose package or model is missing.
    """
    kind = need("sacrebleu.metrics", "mt").BLEU
    name = "none" if tokenize is None else tokenize_for(references) if tokenize == "auto" else tokenize
    names = ("auto", *kind.TOKENIZERS)
    if name not in names:
        raise ValueError(f"tokenize={name}: is not one of {', '.join(names)}.{nearest(name, names)}")
    try:
        return kind(tokenize=name), name
    except (RuntimeError, ImportError, OSError) as e:  # its package, or a network to fetch its model from
        raise ValueError(f"tokenize={name} cannot be used here: {' '.join(str(e).split())}") from None


def generated(truth: Sequence[str], said: Sequence[str], tokenize: str | None = "auto") -> dict[str, float]:
    """{bleu, chrf, exact} of texts, as shares: BLEU (see `bleu` for tokenize) and chrF as sacrebleu takes
    them of a whole corpus, and the share of equal strings."""
    scorer, chrf = bleu(tokenize, truth)[0], need("sacrebleu.metrics", "mt").CHRF()
    return {
        "bleu": scorer.corpus_score(said, [truth]).score / 100,
        "chrf": chrf.corpus_score(said, [truth]).score / 100,
        "exact": sum(a == b for a, b in zip(truth, said, strict=True)) / len(said),
    }


def signature(truth: Sequence[str], tokenize: str | None = "auto") -> str:
    """sacrebleu's signature of the BLEU that `generated` takes, and why, where it chose another tokenizer
    than the usual one."""
    scorer, name = bleu(tokenize, truth)
    scorer.corpus_score(truth, [truth])  # the signature counts references
    if tokenize != "auto" or name == "13a":
        return str(scorer.get_signature())
    why = "the references put no space between words; tokenize=13a is the usual"
    return f"{scorer.get_signature()} (chosen: {why})"


def edits(a: Sequence, b: Sequence) -> int:
    """Insertions, deletions and substitutions that turn one sequence into another (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def transcripts(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """{right: share of texts without an error; wer, cer: edits of all texts for each word, or character, of
    the truth}. A truth without a single one counts as one."""

    def rate(cut: Callable[[str], Sequence]) -> float:
        wrong = sum(edits(cut(a), cut(b)) for a, b in zip(truth, said, strict=True))
        return wrong / max(1, sum(len(cut(a)) for a in truth))

    right = sum(a == b for a, b in zip(truth, said)) / max(1, len(said))
    return {"right": right, "wer": rate(str.split), "cer": rate(list)}
