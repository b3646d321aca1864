"""Frames of tasks, and rows made with them."""

from __future__ import annotations

import random

import pytest

from ilora.data.examples import Example
from ilora.replay.rehearsal import ANSWERS, Frame, pseudo_rows


def rows(task: str, *prompts: list[int], answers: list[list[int]] | None = None) -> list[Example]:
    found = answers or [[7, 1]]
    return [Example(task, f"{task}/{n}", prompt, found[n % len(found)]) for n, prompt in enumerate(prompts)]


OLD = rows("old", [50, 51, 3, 60], [50, 51, 4, 5, 6, 60], [50, 51, 5, 60], answers=[[7, 1], [8, 1]])


def test_a_frame_is_what_all_prompts_share() -> None:
    frame = Frame.of(OLD, seed="s")
    assert (frame.task, frame.head, frame.tail, frame.longest) == ("old", [50, 51], [60], 8)
    assert sorted(frame.answers) == [[7, 1], [8, 1]]
    assert frame.stored_bytes() == 4 * 7
    assert Frame(**frame.state()) == frame


@pytest.mark.parametrize(
    ("prompts", "head", "tail"),
    [
        ([[5, 9], [5, 5, 9]], [5], [9]),
        ([[5, 5, 5], [5, 5, 5, 5]], [5, 5, 5], []),  # one token is in the head or in the tail, never in both
        ([[1, 2], [3, 4]], [], []),
        ([[1, 2, 3]], [], []),  # a single row shows nothing
        ([[1, 2, 3], [1, 2, 3]], [], []),  # nor do equal ones
        ([[], [1]], [], []),
    ],
)
def test_head_and_tail_at_the_edges(prompts: list[list[int]], head: list[int], tail: list[int]) -> None:
    frame = Frame.of(rows("x", *prompts), seed="s")
    assert (frame.head, frame.tail) == (head, tail)


@pytest.mark.parametrize("seed", range(20))
def test_a_frame_by_brute_force(seed: int) -> None:
    chance = random.Random(seed)
    prompts = [[chance.choice([1, 2]) for _ in range(chance.randint(1, 6))] for _ in range(chance.randint(2, 3))]
    if len({tuple(prompt) for prompt in prompts}) < 2:
        prompts.append([3])
    frame = Frame.of(rows("x", *prompts), seed="s")
    shortest = min(map(len, prompts))
    head = max(n for n in range(shortest + 1) if len({tuple(prompt[:n]) for prompt in prompts}) == 1)
    rest = [prompt[head:] for prompt in prompts]
    tail = max(n for n in range(shortest - head + 1) if len({tuple(part[len(part) - n :]) for part in rest}) == 1)
    assert (frame.head, frame.tail) == (prompts[0][:head], rest[0][len(rest[0]) - tail :])


def test_rows_that_were_cut_do_not_hide_the_frame() -> None:
    cut = Example("old", "c", [51, 9, 9, 60], [7, 1], cut=True)
    assert Frame.of([*OLD, cut], seed="s").head == [50, 51]


def test_answers_are_few_and_different() -> None:
    many = rows("x", *[[1, n] for n in range(100)], answers=[[n, 1] for n in range(60)])
    answers = Frame.of(many, seed="s").answers
    assert len({tuple(answer) for answer in answers}) == len(answers) == ANSWERS
    assert Frame.of(many[::-1], seed="s").answers == answers


def test_a_frame_holds_prompts_that_look_like_its_own() -> None:
    frame = Frame("old", [1, 2], [2, 3], [[7, 1]], longest=9)
    assert frame.holds([1, 2, 2, 3])
    assert frame.holds([1, 2, 9, 9, 2, 3])
    assert not frame.holds([1, 2, 3])  # head and tail overlap
    assert not frame.holds([1, 9, 2, 3])
    assert not frame.holds([1, 2, 9, 3])
    assert Frame("old", [], [], [[7, 1]], longest=9).holds([5])


@pytest.mark.parametrize("odd", [1, 4])
def test_a_few_odd_prompts_do_not_hide_a_frame(odd: int) -> None:
    many = rows("x", *[[40, 41, n, 60] for n in range(100)], *[[90 + n] for n in range(odd)])
    frame = Frame.of(many, seed="s")
    assert (frame.head, frame.tail) == ([40, 41], [60])
    assert (
        Frame.of(rows("x", *[[40, 41, n, 60] for n in range(90)], *[[90 + n] for n in range(9)]), seed="s").head == []
    )


def test_no_pseudo_row_is_longer_than_its_task_s_rows() -> None:
    """A long answer stood behind a prompt that was cut: it has no room behind the whole frame."""
    head = list(range(100, 160))
    old = [*rows("old", [*head, 1, 60], [*head, 2, 60]), Example("old", "cut", [60], [9] * 70, cut=True)]
    frame = Frame.of(old, seed="s")
    assert frame.longest == 71
    assert frame.answers == [[7, 1]]
    made = pseudo_rows([frame], rows("new", list(range(30)), list(range(1, 31))), seed="s")
    assert max(map(len, made)) <= frame.longest
    assert pseudo_rows([Frame("old", head, [60], [], longest=71)], rows("new", [1], [2]), seed="s") == []


def test_the_present_texts_in_the_earlier_frames() -> None:
    new = rows("new", [70, 11, 80], [70, 12, 80], [70, 13, 14, 15, 16, 17, 18, 80], [70, 19, 80])
    frames = [Frame.of(OLD, seed="s"), Frame.of(rows("older", [90, 1], [90, 2]), seed="s")]
    made = pseudo_rows(frames, new, seed="s")
    assert sorted(row.task for row in made) == ["old", "old", "older", "older"]
    texts = {(11,), (12,), (13, 14, 15, 16, 17, 18), (19,)}
    for row in made:
        assert row.pseudo
        assert not row.replayed
        frame = frames[0] if row.task == "old" else frames[1]
        body = row.prompt[len(frame.head) : len(row.prompt) - len(frame.tail)]
        assert row.prompt == frame.head + body + frame.tail
        assert any(text[: len(body)] == tuple(body) for text in texts)
        assert row.answer in frame.answers
        assert len(row) <= frame.longest
    assert len({row.id for row in made}) == 4
    assert pseudo_rows(frames, new, seed="s") == made
    assert pseudo_rows(frames, new, seed="other") != made


def test_a_present_row_that_was_cut_gives_what_is_left() -> None:
    new = [*rows("new", [70, 11, 80], [70, 12, 80]), Example("new", "c", [13, 80], [7, 1], cut=True)]
    frame = Frame("old", [50], [60], [[7, 1]], longest=20)
    assert sorted(row.prompt[1:-1] for row in pseudo_rows([frame], new, seed="s")) == [[11], [12], [13]]


@pytest.mark.parametrize(("head", "tail"), [([], []), ([70], []), ([], [80]), ([70], [80])])
def test_a_frame_that_present_prompts_are_in_asks_nothing(head: list[int], tail: list[int]) -> None:
    """The same instruction with new answers, a template or a begin-of-text that all tasks share, nothing at all."""
    new = rows("new", [70, 11, 80], [70, 12, 80])
    frame = Frame("old", head, tail, [[7, 1]], longest=20)
    assert pseudo_rows([frame], new, seed="s") == []
    other = Frame("other", [71], [80], [[7, 1]], longest=20)
    assert {row.task for row in pseudo_rows([frame, other], new, seed="s")} == {"other"}
