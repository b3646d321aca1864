"""Reading the answer out of generated text: a choice or a number, or None if it gives neither.

Both parsers are strict: an ambiguous or unreadable answer is None, which every metric counts as wrong. Both
read the first non-empty line only, so that a run-on continuation ("7\\n\\nQuestion: 8") neither helps nor
harms; a first line that is nothing but a label ("Answer:") is passed over. Source of the rules: the defects
of the scoring released with the paper (METHOD: 'Answer: C' read as A; the first number of '12 + 5 = 17',
compared as a string).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ilora.errors import InputError

_LATIN = "A-Za-z0-9\u00c0-\u024f"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_AROUND = " \t.,;:!?\"'`*_()[]{}<>。、“”‘’„«»「」『』【】《》"
_PREFIX = re.compile(
    r"(?P<label>[^:]{1,40}?)\s*:\s*"
    r"|(?P<verb>(?:so |thus |therefore |hence )?,?\s*(?:i (?:think|believe|would say) (?:that )?)?"
    r"(?:the|this|that|it|my|its)\b[\w ]{0,40}?)\s*\b(?:is|are|was|would be|must be|should be)\s+"
    r"|(?:final |correct |best |right )?(?:answer|option|choice)\s+(?:is\s+)?"
    r"|(?:本题|因此|所以|我认为|正确|最终|的|应该?)*(?:答案|选项|选择|态度|立场|选)(?:应该?)?(?:是|为|选)?\s*",
    re.IGNORECASE,
)
_NO_LABEL = re.compile(
    r"\b(?:not|never|neither|no|wrong|incorrect|false|except|explanation|reason|because|question|example|note)\b"
    r"|n['’]t\b|[错误不非]",
    re.IGNORECASE,
)
_SURELY = r"(?:\s+(?:clearly|definitely|certainly|obviously|really|simply|just|quite|probably|surely|plainly))*"
_WRONG = rf"(?:wrong|incorrect|not{_SURELY}\s+(?:correct|right|true)|never\s+(?:correct|right|true)|错误?|不对|不正确)"
_WRONG_ONE = r"(?:the|a|an)\s+(?:wrong|incorrect|false)\s+(?:answer|option|choice|one)"
_CANNOT = r"can(?:not|\s+not|['’]t)\s+be"
_RIGHT_ONE = r"the\s+(?:right\s+|correct\s+)?(?:answer|option|choice)"
# Of a choice that stands alone: no mark is in between but a quote ('B is never right', '"B" cannot be').
_DENIED_VERB = re.compile(
    rf"[\"'”’]*\s+(?:(?:is|was|are){_SURELY}\s+(?:not|never|wrong|incorrect|false|{_WRONG_ONE})"
    rf"|(?:is|was|are)n['’]t|{_CANNOT}|(?:does|do|did)(?:n['’]t|\s+not))\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\W*(?:(?:is|was|are)\s+(?:not|wrong|incorrect|false)|(?:is|was|are)n['’]t)\b"
    rf"|\W+{_WRONG}\s*(?:[.,;!)\]。、]|$)|\?\W*(?:no|not)\b"
    r"|\s*(?:选项|答案|并|也|都|显然|肯定)*"
    r"(?:不是|并非|是(?:错|不)|(?:不(?:对|正确|成立)|错误?|有误)(?:的(?!\w)|(?=因为|所以|应|故|\W|$)))",
    re.IGNORECASE,
)
_DENIED_TEXT = re.compile(  # of a letter with its option's own text: 'A. dovish is wrong'
    rf"(?<!\bnone )(?<!\bnothing )\b(?:is|was|are|would be|must be){_SURELY}\s+"
    rf"(?:wrong|incorrect|{_WRONG_ONE}|(?:not|never){_SURELY}\s+(?:correct|right|{_RIGHT_ONE}))\b"
    rf"|\b(?:is|was|are)n['’]t\s+(?:correct|right|{_RIGHT_ONE})\b"
    rf"|\b{_CANNOT}\s+(?:correct|right)\b|\s[-–—]\s*{_WRONG}\s*(?:[.,;!]|$)"
    r"|(?:是错的|是错误的|不对|不正确)\s*(?:[.,;!。、，]|$)",
    re.IGNORECASE,
)
# What is denied is not the option, but something that its text speaks of.
_OTHER_SUBJECT = re.compile(
    r"\b(?:both|all|others?|rest|neither|statements?|premises?|claims?|options|it|lying|only)\b|以上|只有|[①-⑩]",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"(?:no|not|false|incorrect|wrong|never|none|contradiction)\b|错|否|不", re.IGNORECASE)
_DENYING = re.compile(r"(?:\b(?:not|not the|no|wrong|incorrect|false|isn['’]t the)|[错误不非])\s*$", re.IGNORECASE)
_WORD_AFTER = re.compile(rf"\s+(?!(?:because|since|as|is|and|or)\b)[{_LATIN}]", re.IGNORECASE)
_GLUED = re.compile(r"['’+#&/@-]\w|\.[A-Z]\.|\+")
_VERDICT = (
    r"(?:\b(?:answer|option|choice)\s*(?:is|would be|must be|should be)?"
    r"|答案(?:应该?)?(?:是|为|选)?|选择?|选项)"
    r"\s*:?\s*(?:option\s+)?[(\[\"'*]*"
)
_RIVAL = (
    r"(?:\b(?:or|nor|not|either)|或者?|不是|不选)\s*(?:(?:maybe|perhaps|possibly|even)\s+)?(?:option\s+)?[(\[\"'*]*"
)
_INSTEAD = (
    r"(?:\b(?:no|wait|actually|instead|rather|but|so|thus|hence|therefore|then|sorry|mean)|不|所以|因此|而是|应该?选?为?|故选)"
    r"[\s,]*[(\[\"'*]*"
)
_PREFERRED = r"\s+(?:is|seems|fits)\s+(?:the\s+|more\s+)?(?:correct|right|true|better|best|answer|likely|likelier)\b"
_JOINT = r"[,&/、;+|\\=·→–—?-]+>?|\.{2,}|(?:and|und|vs|versus)\b\.?|和|与|以及|及|跟|與"


def parse_choice(text: str, choices: Sequence[str]) -> str | None:
    """The member of `choices` that `text` answers with, or None (which counts as wrong).

    Both sides are NFKC-normalised first ('Ａ' = 'A', '：' = ':'), runs of spaces are one. Then:

    1. Only the first non-empty line counts; if that is a bare label ("Answer:"), the next one.
    2. A line that is a choice and nothing else is that choice, in any case, with or without quotes, brackets
       and final punctuation: 'A', '(a).', '**Positive**'. An exact hit goes before every rule below.
    3. A label or opening is passed over: 'Answer: ', 'The answer is ', 'Option ', '答案：', '选'; but
       not if it holds a choice or a denial ('Wrong answer: B' -> None).
       An answer is the letter alone, the letter with its option's text, or (if the choices are texts) the text alone.
    4. Letters (every choice is one letter): the line begins with the letter, standing alone and in the case
       of the choice ('C. neutral', '(B) because ...', 'A支持'), or a later 'answer is B' names it. 'A' or 'I'
       before a further Latin word is an article or a pronoun ('A dog barks' -> None), except before because,
       since, as, is, and behind a label ('Answer: A the liver' -> A). Letters inside words and
       abbreviations never count ('Answer', 'B-cell', "A's", 'D.C.').
    5. Letters, ambiguous -> None: a second, different letter that is joined to the first ('A or B', 'A, B',
       'A/B', 'A -> B'), denied ('B, not A'), put in its place ('A. dovish is wrong, so B', 'A? No, B'), or marked
       like an option ('A. dovish, B. hawkish'). Mere mentions do no harm ('B. Vitamin C' -> B).
    6. Words: the line begins with the choice at a word boundary, case ignored, the longest choice first
       ('very negative' before 'negative'; 'neutrality' is not 'neutral'). Scripts without spaces need no
       boundary.
    7. Words, ambiguous -> None: a different choice anywhere later in the line ('positive, not negative').
    8. A denied choice is none ('not neutral', 'B is wrong', 'A. Wrong', 'A. dovish is wrong', '支持是错的' -> None).
       A text that only begins with such a word is the option's own ('A. False positives', 'D. 不作为犯罪',
       '支持错误的观点').

    Errors: InputError for no choices, a blank one, or two that are equal after normalisation.
    """
    known = _known(tuple(choices))
    lines = [line for line in (_tidy(part) for part in _nfkc(text).splitlines()) if line]
    for line in lines[:2]:
        if (whole := known.members.get(_fold(line))) is not None:
            return whole
        rest = _without_prefix(line, known)
        if not rest:
            continue
        if (whole := known.members.get(_fold(rest))) is not None:
            return whole
        return _letter(rest, known, labelled=rest != line) if known.letters else _word(rest, known)
    return None


def choice_key(choice: str) -> str:
    """The key that all spellings of a choice share: case, width, spacing and outer punctuation do not count."""
    return _fold(_tidy(_nfkc(choice)))


@dataclass(frozen=True)
class _Known:
    """The choices of one task: folded text -> choice; the letters as written (else ""); a pattern."""

    members: dict[str, str]
    letters: str
    pattern: re.Pattern[str]


@lru_cache(maxsize=64)
def _known(choices: tuple[str, ...]) -> _Known:
    members: dict[str, str] = {}
    for choice in choices:
        key = choice_key(choice)
        if not key:
            raise InputError(f"choice {choice!r} is blank; every choice needs a text")
        if key in members:
            raise InputError(f"choices {members[key]!r} and {choice!r} are the same answer; they must differ")
        members[key] = choice
    if not members:
        raise InputError("no choices are given; a closed task needs at least one")
    texts = sorted((_tidy(_nfkc(choice)) for choice in choices), key=len, reverse=True)
    single = all(re.fullmatch("[A-Za-z]", text) for text in texts)
    pattern = re.compile("|".join(_bounded(text) for text in texts), re.IGNORECASE)
    return _Known(members, "".join(texts) if single else "", pattern)


def _bounded(text: str) -> str:
    """A pattern for the choice as a whole word; single letters in their own case."""
    before = "" if re.match(f"[{_CJK}]", text) else r"(?<![\w-])"
    after = "" if re.search(f"[{_CJK}]$", text) else r"(?!\w|['’-]\w|[.,]\d)"
    body = re.escape(text)
    return before + (f"(?-i:{body})" if len(text) == 1 else body) + after


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _tidy(line: str) -> str:
    """Single spaces, no markup and no opening bullet."""
    return " ".join(re.sub(r"^\s*(?:[-•>#]+\s+)+|[*`]", "", line).split())


def _fold(line: str) -> str:
    low = line.lower()
    return low.strip(_AROUND) or low


def _without_prefix(line: str, known: _Known) -> str:
    """The line after its labels ('Answer: The answer is ...' has two)."""
    for _ in range(3):
        found = _PREFIX.match(line)
        if not found:
            break
        label = found["label"] or found["verb"] or ""
        if _NO_LABEL.search(label) or _mentions(label, known):
            break
        line = line[found.end() :]
    return line.strip()


def _mentions(text: str, known: _Known) -> bool:
    if known.letters:
        return bool(re.search(rf"(?<![{_LATIN}])[{known.letters}](?![{_LATIN}])", text))
    return bool(known.pattern.search(text))


def _is_word(letter: str, after: str) -> bool:
    """Whether a lone letter is no choice, by what follows: an article, pronoun, part of a word."""
    article = letter.upper() in "AI" and _WORD_AFTER.match(after)
    return bool(article or _GLUED.match(after))


def _letter(line: str, known: _Known, *, labelled: bool) -> str | None:
    """The letter that a line answers with. labelled: the line stood behind a label, so a letter is no article."""
    one = rf"(?<![{_LATIN}])(?P<x>[{known.letters}])(?![{_LATIN}])"
    found = re.match(rf"[\s\"'“‘(\[{{<]*{one}", line)
    hits = [found] if found and not (_GLUED.match(line[found.end() :]) if labelled else _at_word(found)) else []
    verdicts = re.finditer(f"(?i:{_VERDICT}){one}", line)
    hits += [hit for hit in verdicts if not _DENYING.search(line[: hit.start()]) and not _at_word(hit)]
    named = {hit["x"] for hit in hits}
    if len(named) != 1 or any(_denied(line[hit.end() :], one) for hit in hits):
        return None
    letter = named.pop()
    others = "".join(set(known.letters) - {letter})
    if others and _rival(line, letter, others):
        return None
    return known.members[letter.lower()]


def _denied(rest: str, one: str) -> bool:
    """Whether what follows a letter takes it back, at once or behind its option's text. one: pattern of any letter."""
    own = re.split(rf"\b(?:because|since)\b|因为|{one}", rest, maxsplit=1, flags=re.IGNORECASE)[0]
    if _DENIED.match(rest) or _DENIED_VERB.match(rest):
        return True
    found = _DENIED_TEXT.search(own)
    return found is not None and not _OTHER_SUBJECT.search(own[: found.start()])


def _at_word(hit: re.Match[str]) -> bool:
    return _is_word(hit["x"], hit.string[hit.end() :])


def _rival(line: str, letter: str, others: str) -> bool:
    """Whether the line puts one of the other letters up as an answer too (rule 5)."""
    other = rf"(?<![{_LATIN}])(?P<x>[{others}])(?![{_LATIN}])"
    joined = rf"(?<![{_LATIN}]){letter}[)\]\"']?(?:\s*(?:{_JOINT})|\s)\s*[(\[\"']*{other}"
    marked = rf"\({other}\)|{other}[).:]\s*\w"
    instead = rf"(?i:{_INSTEAD}){other}(?=\s*(?:[.,;!?)\]。]|$|is\b|是))"
    better = f"{other}(?i:{_PREFERRED})"
    for pattern in (joined, marked.replace("?P<x>", ""), f"(?i:{_RIVAL}){other}", instead, better):
        for hit in re.finditer(pattern, line):
            name = hit.groupdict().get("x") or "-"
            if not _is_word(name, line[hit.end() :]):
                return True
    return False


def _word(line: str, known: _Known) -> str | None:
    line = line.lstrip(" \"'“”‘’„«「『【《([{<_")
    found = known.pattern.match(line)
    if not found:
        return None
    rest = line[found.end() :]
    denied = _DENIED_VERB.match(rest) or (_DENIED.match(rest) and not _NEGATION.match(found[0]))
    if denied or (len(found[0]) == 1 and _is_word(found[0], rest)):
        return None
    key = _fold(found[0])
    if any(_fold(hit[0]) != key for hit in known.pattern.finditer(rest)):
        return None
    return known.members[key]


_BLOB = re.compile(r"(?:(?<![\w.])\.)?[0-9](?:[0-9.,/:-]*[0-9])?(?:[eE][+-]?[0-9]+(?!\w))?")
_PLAIN = re.compile(r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_RATIO = re.compile(r"([0-9]+)/([0-9]+)")
_SIGN = re.compile(r"(?:^|[\s=(\[{:;,<>|\"'≈~*/×])(?:([-+])[$€£¥]?|[$€£¥]([-+]))$")
_FRAC = re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_IN_WORD = re.compile(r"(?:[A-Za-z_\u00c0-\u024f]|\^-?)$")
_LONGEST = 60


def parse_number(text: str) -> Fraction | None:
    """The LAST number of the FIRST non-empty line, exact, or None.

    * '12 + 5 = 17' -> 17, 'the answer is 7.\\n\\nQuestion: 8' -> 7. If the first line is a bare label without
      a digit ('Answer:'), the next one is read.
    * '17' = '17.' = '17.0'; '-3', '−3', '–3'; '2.5e3' (exponents up to 999 in size); '.5'; full-width digits.
    * Commas only as separators of thousands: '1,234' -> 1234; '1,23', '1.234,5', '1,2,3' and "12'000" -> None.
    * '3/4' and '\\frac{3}{4}' -> 3/4; '3 1/2' and '3½' -> 7/2; '1/0' -> None.
    * A currency sign, a percent sign and units are passed over: '$1,200.50' -> 1200.5, '50%' -> 50 (not 0.5),
      '10 m²' -> 10.
    * Digits inside a word or after '^' are no number ('CO2', 'm^2'). If the last number is not readable as
      one - a power ('10^2'), a time, date or range ('12:30', '10-12'), spaced groups ('1 000'), another base
      ('0x1F') - the answer is None.
    """
    lines = [line.strip() for line in _digits(text).splitlines() if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"[^:0-9]{1,40}:", lines[0]):
        lines = lines[1:]
    line = lines[0] if lines else ""
    blobs = [
        blob for blob in _BLOB.finditer(line) if not _IN_WORD.search(line[max(0, blob.start() - 2) : blob.start()])
    ]
    if not blobs:
        return None
    blob = blobs[-1]
    before, after = line[: blob.start()], line[blob.end() :]
    if len(blob[0]) > _LONGEST or re.match(r"\s?\^", after) or re.search(r"[0-9]['’]$", before):
        return None
    if blob[0] == "0" and re.match(r"[xbo][0-9a-f]", after, re.IGNORECASE):
        return None
    value = _value(blob[0], before)
    mixed = re.search(r"(?<![\w.,/:])(?<![0-9]-)[0-9]{1,9} $", before) if "/" in blob[0] else None
    if value is not None and mixed and value < 1:
        value += int(mixed[0])
        before = before[: mixed.start()]
    sign = _SIGN.search(before)
    return -value if value is not None and sign and "-" in sign.groups() else value


def _digits(text: str) -> str:
    """NFKC, but with powers kept apart ('10²' -> '10^2', not '102') and so fractions ('3½' -> '3 1/2')."""
    marks = {"<super>": "^", "<fraction>": " "}
    parts = [
        marks.get(unicodedata.decomposition(char).split(" ")[0], "") + char if ord(char) > 127 else char
        for char in text
    ]
    plain = _nfkc("".join(parts)).replace("\u2044", "/").replace("\u2212", "-").replace("\u2013", "-")
    return _FRAC.sub(r" \1/\2 ", plain).replace("  ", " ")


def _value(blob: str, before: str) -> Fraction | None:
    if ratio := _RATIO.fullmatch(blob):
        return Fraction(int(ratio[1]), int(ratio[2])) if int(ratio[2]) else None
    if not _PLAIN.fullmatch(blob):
        return None
    if re.fullmatch("[0-9]{3}", blob) and re.search(r"(?<![\w.,])[0-9]{1,3} $", before):
        return None
    return Fraction(blob.replace(",", ""))
