"""Metrics of tasks. Classification's are scikit-learn's, text's sacrebleu's; those of spans are here."""

import collections
import re
import string


def need(name, extra):
    """A library that an extra brings; raises ValueError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this metric needs {name.split('.')[0]}: pip install 'qkv[{extra}]'") from None


def classification(truth, said, labels):
    """{accuracy, f1 (macro), mcc} of lists of class numbers."""
    from sklearn import metrics as m

    return {
        "accuracy": m.accuracy_score(truth, said),
        "f1": m.f1_score(truth, said, average="macro", labels=range(len(labels)), zero_division=0.0),
        "mcc": m.matthews_corrcoef(truth, said),
    }


def entities(tags):
    """{(type, first token, last token)} of a sentence's BIO tags. An I- that goes on from nothing begins an entity (conlleval)."""
    out, start, kind = set(), None, None
    for i, tag in enumerate([*tags, "O"]):
        inside = tag[:2] == "I-" and kind == tag[2:]
        if kind is not None and not inside:
            out.add((kind, start, i - 1))
            kind = None
        if tag != "O" and not inside:
            start, kind = i, tag[2:]
    return out


def entity_f1(truth, said):
    """{f1, precision, recall} of whole entities (CoNLL-2003): type and both ends must agree. Lists of sentences' BIO tags."""
    right = wanted = found = 0
    for a, b in zip(truth, said, strict=True):
        a, b = entities(a), entities(b)
        right, wanted, found = right + len(a & b), wanted + len(a), found + len(b)
    precision, recall = right / found if found else 0.0, right / wanted if wanted else 0.0
    return {"f1": 2 * precision * recall / (precision + recall) if right else 0.0, "precision": precision, "recall": recall}


def plain(text):
    """Lower case, without punctuation, articles and extra spaces (SQuAD, 2016, section 6.1)."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def overlap(said, truth):
    """F1 of the words that two answers share."""
    a, b = plain(said).split(), plain(truth).split()
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def answers(truth, said):
    """{exact, f1} of answers: the best of the right ones counts; where there is none, "" is right."""
    best = lambda score, wanted, given: max(score(given, w) for w in (wanted or [""]))
    n = max(1, len(said))
    return {
        "f1": sum(best(overlap, w, s) for w, s in zip(truth, said, strict=True)) / n,
        "exact": sum(best(lambda a, b: float(plain(a) == plain(b)), w, s) for w, s in zip(truth, said)) / n,
    }


def generated(truth, said):
    """{exact, bleu, chrf} of texts."""
    sacrebleu = need("sacrebleu", "tasks")
    return {
        "bleu": sacrebleu.corpus_bleu(said, [truth]).score / 100,
        "chrf": sacrebleu.corpus_chrf(said, [truth]).score / 100,
        "exact": sum(a.strip() == b.strip() for a, b in zip(truth, said, strict=True)) / max(1, len(said)),
    }


def edits(a, b):
    """Insertions, deletions and substitutions that turn one sequence into another (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def transcripts(truth, said):
    """{right: share of texts without an error, wer, cer: edits a word and a character of the truth}."""
    rate = lambda cut: sum(edits(cut(a), cut(b)) for a, b in zip(truth, said, strict=True)) / max(1, sum(len(cut(a)) for a in truth))
    return {"right": sum(a == b for a, b in zip(truth, said)) / max(1, len(said)), "wer": rate(str.split), "cer": rate(list)}
