"""The strict answer parsers: every rule of their docstrings, with texts that a lax parser reads wrongly."""

from fractions import Fraction

import pytest

from ilora.errors import InputError
from ilora.metrics.answers import choice_key, parse_choice, parse_number

LETTERS = ("A", "B", "C", "D")
TONES = ("very negative", "negative", "neutral", "positive", "very positive")
STANCES = ("支持", "反对", "中立")


TAKEN_BACK = """
B cannot be correct|B can't be right|B. hawkish cannot be right|B is the wrong answer|B is a wrong answer
B. hawkish is the wrong option|B. hawkish is the incorrect answer|B. hawkish isn't the answer|B is clearly wrong
B. hawkish is clearly wrong|B is definitely not correct|B. hawkish is not quite correct|B is never right|B (wrong)
B does not apply|B. hawkish. C is correct|B. hawkish; C is better|B. hawkish. I mean C|B. Sorry, C|B then C|B, then C
B? C|B or maybe C|A. dovish - wrong|A, or maybe B
"""


@pytest.mark.parametrize("text", TAKEN_BACK.strip().replace("\n", "|").split("|"))
def test_a_letter_that_is_taken_back_or_replaced_is_no_answer(text: str) -> None:
    assert parse_choice(text, "ABC") is None


@pytest.mark.parametrize("text", ["positive cannot be right", "positive doesn't fit", "positive is clearly wrong"])
def test_a_text_that_is_taken_back_is_no_answer(text: str) -> None:
    assert parse_choice(text, ["positive", "negative"]) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B. The rate cannot be lower", "B"),
        ("A. False positives", "A"),
        ("B. C is a vitamin", "B"),
        ("C is correct", "C"),
    ],
)
def test_words_within_an_options_own_text_take_nothing_back(text: str, answer: str) -> None:
    assert parse_choice(text, "ABC") == answer


OWN_TEXTS = """
D. Cannot be determined|D) cannot be determined|C. Does not change|D. did not occur|B. Do not resuscitate
C. Both statements are wrong|D. All of the above are wrong|B) Lying is wrong|A. It is wrong to lie
B. The first premise is not true|B. Only statement 1 is correct; statement 2 is wrong.|A. Don't know
B. The other options are incorrect.|B is correct, the others are not correct|D. 以上都不对|D. 以上说法都不正确
B. 只有②是错误的
"""


@pytest.mark.parametrize("text", OWN_TEXTS.strip().replace("\n", "|").split("|"))
def test_an_options_own_text_may_deny_something_else(text: str) -> None:
    assert parse_choice(text, "ABCD") == text[0]


@pytest.mark.parametrize("text", ["No, incorrect.", "No. Incorrect.", "No, wrong.", "No, not true.", "No, it does not"])
def test_a_no_that_is_affirmed_is_a_no(text: str) -> None:
    assert parse_choice(text, ["Yes", "No"]) == "No"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # alone, any case, outer punctuation
        ("A", "A"), ("b", "B"), ("(a).", "A"), ("[C]", "C"), ('"D"', "D"), ("**B**", "B"), ("- B", "B"), ("Ｂ", "B"),
        ("\n\n C \n", "C"), ("A:", "A"),
        # labels and openings
        ("Answer: C", "C"), ("answer: c", "C"), ("Answer:\nC", "C"), ("答案：D", "D"), ("答案是B。", "B"), ("选B", "B"),
        ("The answer is (B).", "B"), ("The correct answer is: D", "D"), ("Stance: A. dovish", "A"), ("It is B.", "B"),
        ("Option B: hawkish", "B"), ("Answer: The answer is D", "D"), ("正确答案：C", "C"),
        # first on the line
        ("C. neutral", "C"), ("A\nbecause B is wrong", "A"), ("A because it says so", "A"), ("A is right", "A"),
        ("(B) since it rains", "B"), ("A支持", "A"), ("A.支持", "A"), ("C neutral", "C"),
        # other letters that are no rivals
        ("B. Vitamin C", "B"), ("B. A protein", "B"), ("B. Vitamins A and D", "B"), ("A\n\nB", "A"),
        ("A. I think so", "A"),
        ("I think the answer is B because A is wrong", "B"), ("Prices rose, so the correct option is D", "D"),
        # no choice at all
        ("", None), (" \n ", None), ("A dog barks", None), ("Answer: A dog barks", "A"), ("I agree", None),
        ("E", None),
        ("E. other", None), ("dovish", None), ("Absolutely", None), ("B-cell lymphoma", None), ("D.C. is a city", None),
        ("A's", None), ("B+", None), ("b) hawkish", None), ("Because of this", None), ("Answer:", None),
        # ambiguous
        ("A or B", None), ("A, B", None), ("A/B", None), ("A&B", None), ("A B", None), ("AB", None), ("A和B", None),
        ("A. dovish, B. hawkish, C. neutral", None), ("(A) or (B)", None), ("C is correct. The answer is D", None),
        ("The answer is A or B", None), ("B, not A", None), ("B，不是A", None),
        # denied
        ("The correct answer is not B", None), ("B is wrong", None), ("B isn't right", None), ("Wrong answer: B", None),
        ("not B", None), ("不选B", None), ("A不对", None), ("A不正确", None), ("A错误", None), ("A 错误的", None),
        ("B不是正确答案", None), ("B是错的", None), ("A并不正确", None), ("A. Wrong", None), ("A: not correct", None),
        ("A. 错误", None), ("A? No", None), ("A不对，B", None), ("A错误，应选B", None),
        # another one in its place, or joined in other ways
        ("A. dovish is wrong", None), ("A. dovish is wrong, B", None), ("A. dovish is not the right answer", None),
        ("A. dovish isn't correct", None), ("B. hawkish, which is incorrect", None),
        ("C. neutral because A is wrong", "C"),
        # behind a label A is no article
        ("Answer: A the liver", "A"), ("The answer is A the liver", "A"), ("Option A the liver", "A"),
        ("Final answer: A the liver", "A"), ("Answer A the liver", "A"),
        ("A? No, B", None), ("A; no, B", None), ("A. dovish is wrong, so B", None),
        ("The answer is A. No wait, B.", None),
        ("A？不，B", None), ("A以及B", None), ("A及B", None), ("A | B", None), ("A -> B", None), ("A - B", None),
        ("A → B", None), ("A=B", None), ("A...B", None), ("B vs C", None), ("A與B", None),
        # what an option or its reasons may say
        ("A. Dovish", "A"), ("B - hawkish", "B"), ("A. dovish, because not hawkish", "A"), ("B. No change", "B"),
        ("A. False positive rate", "A"), ("B. False", "B"), ("A. Wrongful death", "A"), ("D. 不作为犯罪", "D"),
        ("A. 不支持", "A"), ("A. Not applicable", "A"), ("B. 错误的行为", "B"), ("C. None is wrong", "C"),
        ("A. No", "A"),
        ("A. It grows, so B cells divide", "A"), ("A - not much", "A"), ("C. 所以不构成犯罪", "C"),
    ],
)  # fmt: skip
def test_letters(text: str, answer: str | None) -> None:
    assert parse_choice(text, LETTERS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("very negative", "very negative"), ("negative", "negative"), ("Negative.", "negative"),
        ("VERY  Positive!", "very positive"), ("“neutral”", "neutral"), ("positive.The film", "positive"),
        ("Stance: neutral", "neutral"), ("The sentiment is positive.", "positive"), ("Answer:\n positive", "positive"),
        ("This review is very negative", "very negative"), ("positive positive positive", "positive"),
        ("neutral\nnegative", "neutral"), ("neutral, I think", "neutral"), ("ｎｅｕｔｒａｌ", "neutral"),
        ("positive, not negative", None), ("negative or neutral", None), ("very negative, almost negative", None),
        ("positive/negative", None), ("not neutral", None), ("It is not positive", None), ("neutral is wrong", None),
        ("neutrality", None), ("positively", None), ("non-negative", None), ("negative-ish", None), ("", None),
        ("somewhat positive", None), ("The positive one is negative", None), ("Not: positive", None),
    ],
)  # fmt: skip
def test_words(text: str, answer: str | None) -> None:
    assert parse_choice(text, TONES) == answer


@pytest.mark.parametrize(
    ("text", "choices", "answer"),
    [
        ("支持。", STANCES, "支持"), ("态度：反对", STANCES, "反对"), ("支持这个观点", STANCES, "支持"),
        ("不支持", STANCES, None), ("支持是错的", STANCES, None), ("支持不对", STANCES, None),
        ("反对不正确，因为", STANCES, None), ("支持错误的观点", STANCES, "支持"), ("支持不对等的合作", STANCES, "支持"),
        ("支持，不是反对", STANCES, None),
        ("Science or Technology", ("Science or Technology", "Technology", "World"), "Science or Technology"),
        ("science or technology news", ("Science or Technology", "World"), "Science or Technology"),
        ("True", ("False", "True"), "True"), ("true or false", ("False", "True"), None),
        ("False False", ("False", "True"), "False"), ("Bad, not worth it", ("Bad", "Good"), "Bad"),
        ("5 stars", tuple("12345"), "5"), ("4.5", tuple("12345"), None), ("45", tuple("12345"), None),
        ("-1", ("-1", "0", "1"), "-1"), ("1", ("-1", "0", "1"), "1"),
        ("AC", ("A", "C", "AC"), "AC"), ("A dog", ("A", "AC"), None), ("a cat", ("A", "AC"), None),
        ("A.", ("A", "AC"), "A"),
        ("B, I think", tuple("ABCDEFGHIJ"), "B"), ("I think B", tuple("ABCDEFGHIJ"), None), ("c", ("a", "b", "c"), "c"),
        ("a) dog", ("a", "b"), "a"), ("a dog", ("a", "b"), None),
        ("not neutral", ("not neutral", "neutral"), "not neutral"),
        ("Straße", ("STRASSE", "Straße"), "Straße"), ("yes!", ("Yes.", "No."), "Yes."), ("C++ is", ("C", "C++"), "C++"),
    ],
)  # fmt: skip
def test_other_choices(text: str, choices: tuple[str, ...], answer: str | None) -> None:
    assert parse_choice(text, choices) == answer


def test_every_choice_answers_with_itself() -> None:
    for choices in (LETTERS, TONES, STANCES, ("True", "False"), ("Science or Technology", "World")):
        for choice in choices:
            for text in (
                choice,
                f" {choice}.",
                f"Answer: {choice}",
                f"答案：{choice}",
                f"{choice}\nother",
                f"The answer is {choice}.",
            ):
                assert parse_choice(text, choices) == choice, text


@pytest.mark.parametrize(
    ("choices", "message"),
    [((), "no choices"), (("A", " "), "' ' is blank"), (("Yes", "yes."), "'Yes' and 'yes.' are the same answer")],
)
def test_unusable_choices(choices: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_choice("A", choices)


def test_choice_key() -> None:
    assert choice_key(" **Very   Positive**. ") == choice_key("very positive")
    assert choice_key("C++") != choice_key("C")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("17", 17), ("17.", 17), ("17.0", 17), ("１７", 17), ("**17**", 17), ("$17", 17),
        ("17 apples", 17), ("17!", 17),
        ("12 + 5 = 17", 17), ("12+5=17", 17), ("The answer is 7.", 7), ("Answer: 7", 7), ("答案是7个", 7),
        ("the answer is 7. \n\nQuestion: 8", 7), ("\n\n 7\n8", 7), ("Answer:\n17", 17),
        ("1,234", 1234), ("$1,200.50", Fraction(2401, 2)), ("= 1,234,567.", 1234567), ("50%", 50), ("17 %", 17),
        ("-3", -3), ("−3", -3), ("x=-3", -3), ("(-4)", -4), ("-$5", -5), ("$-5", -5), ("+5", 5),
        ("-3/4", Fraction(-3, 4)),
        (".5", Fraction(1, 2)), ("-.5", Fraction(-1, 2)), ("0.1", Fraction(1, 10)), ("...5", 5), ("Nr.5", 5),
        ("2.5e3", 2500), ("5E-1", Fraction(1, 2)), ("3 e", 3),
        ("3/4", Fraction(3, 4)), ("3½", Fraction(7, 2)), ("3 1/2", Fraction(7, 2)), ("-3 1/2", Fraction(-7, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)), ("6/4", Fraction(3, 2)),
        ("10 m²", 10), ("10 m^2", 10), ("7 tons of CO2", 7), ("3 x2", 3), ("12 to the north, 5", 5),
        ("", None), ("none", None), ("CO2", None), ("seventeen", None), ("\n\n", None), ("no idea\n17", None),
        ("1/0", None), ("1,23", None), ("1.234,5", None), ("1,2,3", None), ("1.2.3", None), ("12:30", None),
        ("10-12", None), ("12'000", None), ("1’000", None), ("12' long", 12), ("–5", -5), ("x = –5", -5),
        ("10–12", None),
        ("0x1F", None), ("0b101", None), ("0x1F = 31", 31), ("0.5x", Fraction(1, 2)), ("0 boxes", 0),
        ("2020-01-05", None), ("10²", None), ("10^2", None), ("1 000", None), ("1e999999999", None), ("9" * 61, None),
    ],
)  # fmt: skip
def test_numbers(text: str, value: int | Fraction | None) -> None:
    parsed = parse_number(text)
    assert parsed == value
    assert parsed is None or isinstance(parsed, Fraction)


def test_a_huge_input_is_no_trap() -> None:
    assert parse_number("1" * 100_000) is None
    assert parse_number("x1 " * 20_000 + "1 " * 20_000) == 1
    assert parse_choice("A " * 20_000, LETTERS) is None
    assert parse_choice("x" * 100_000, TONES) is None
