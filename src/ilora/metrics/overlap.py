"""How much two texts have in common: words in any script, ROUGE-L, SARI, edit similarity. All in [0, 1]."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_EMPTY_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}


def tokens(text: str, *, marks: bool = False) -> list[str]:
    """Case-folded words of letters and digits in any script (umlauts kept); CJK characters one by one.

    marks: also every punctuation mark and symbol, one by one. The rouge-score library's own tokenizer keeps a-z and
    0-9 only: it cuts 'für' to 'f', 'r' and finds nothing in Chinese.
    """
    found: list[str] = []
    grows = False
    for char in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(char)[0]
        if _CJK.match(char) or (marks and kind in "PS"):
            found.append(char)
            grows = False
        elif grows and kind in "LNM":
            found[-1] += char
        elif kind in "LN":
            found.append(char)
            grows = True
        else:
            grows = False
    return found


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of `tokens` (rouge-score library, no stemming)."""
    return _rouge_l()(reference, prediction)


@cache
def _rouge_l() -> Callable[[str, str], float]:
    """The library takes a second to import, so only the runs that need it pay."""
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        @staticmethod
        def tokenize(text: str) -> list[str]:
            return tokens(text)

    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=Words())
    return lambda reference, prediction: float(scorer.score(reference, prediction)["rougeL"].fmeasure)


def sari(source: Sequence[str], prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SARI of one sentence or text, given as tokens: what was rightly kept, deleted and added.

    The mean over n = 1..4 of the F1 of kept n-grams, the precision of deleted ones and the F1 of added ones; 0/0
    is 1. Source: Xu et al. 2016, "Optimizing statistical machine translation for text simplification", with the
    recall of kept n-grams over their number, as in Hugging Face's `evaluate` and tensor2tensor (the authors'
    script divides once more by the number of distinct n-grams: 0.2683 for its first example instead of 0.2695).
    """
    total = 0.0
    for n in range(1, 5):
        before, after = _ngrams(source, n, len(references)), _ngrams(prediction, n, len(references))
        wanted: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            wanted += _ngrams(reference, n, 1)
        total += _kept(before, after, wanted) + _deleted(before, after, wanted) + _added(before, after, wanted)
    return total / 12


Grams = Counter[tuple[str, ...]]


def _ngrams(words: Sequence[str], n: int, times: int) -> Grams:
    counted = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return Counter({gram: count * times for gram, count in counted.items()})


def _kept(before: Grams, after: Grams, wanted: Grams) -> float:
    kept, should = before & after, before & wanted
    good = kept & wanted
    precision = sum(good[gram] / kept[gram] for gram in kept) / len(kept) if kept else 1.0
    recall = good.total() / should.total() if should else 1.0
    return _f1(precision, recall)


def _deleted(before: Grams, after: Grams, wanted: Grams) -> float:
    deleted = before - after
    good = deleted - wanted
    return sum(good[gram] / deleted[gram] for gram in deleted) / len(deleted) if deleted else 1.0


def _added(before: Grams, after: Grams, wanted: Grams) -> float:
    added, should = set(after) - set(before), set(wanted) - set(before)
    good = len(added & should)
    return _f1(good / len(added) if added else 1.0, good / len(should) if should else 1.0)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def edit_similarity(prediction: str, reference: str) -> float:
    """1 - (insertions and deletions between the texts) / (the sum of their lengths), by characters (rapidfuzz).

    The literals of Py150's code are written out first ('<STR_LIT:a>' is 'a'), as CodeXGLUE's evaluator does.
    """
    from rapidfuzz import fuzz

    return float(fuzz.ratio(_written_out(prediction), _written_out(reference))) / 100


def _written_out(code: str) -> str:
    for literal, text in _EMPTY_LITERALS.items():
        code = code.replace(literal, text)
    return _LITERAL.sub(r"\1", code).strip()
