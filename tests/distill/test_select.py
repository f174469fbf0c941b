from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.distill.select import (
    KeptTrace,
    draw,
    informed_weight,
    merge_traces,
    select_traces,
    solve_rates,
    within_budget,
)
from qstar.errors import UserError
from qstar.grading.steps import step_key
from qstar.problems.problem import problem_id
from qstar.trace import Trace
from tests.distill.data import BUY, END, LUCKY, QUESTION, SUM, WORDY, right, trace, wrong


def select(*traces: Trace, per_problem: int = 4, require_equations: bool = True, **other: object) -> list[KeptTrace]:
    return list(
        select_traces(list(traces), per_problem=per_problem, require_equations=require_equations, **other)  # type: ignore[arg-type]
    )


def test_funnel_counts_every_stage() -> None:
    traces = [
        right(),
        right(logprob=-2.0),  # the same text again
        trace(WORDY, SUM, END),  # the same chain in other words
        trace(SUM, BUY, END),  # another chain
        trace(LUCKY, SUM, END),  # right answer, false equation
        wrong(),
        trace(BUY, finish="length", status="wrong", answer=None),
        wrong(question="Another question?"),
    ]
    selection = select_traces(traces, per_problem=1, require_equations=True)
    (item,) = selection
    f = selection.funnel
    assert (f.problems, f.solved) == (2, 1)
    assert (f.sampled, f.correct, f.verified, f.texts, f.distinct, f.kept) == (8, 5, 4, 3, 2, 1)
    assert item.trace.solution == BUY + SUM + END
    assert item.count == 3


def test_most_probable_wording_of_a_chain_is_kept() -> None:
    (item,) = select(right(logprob=-3.0), trace(WORDY, SUM, END, logprob=-2.0))
    assert item.trace.steps[0].text == WORDY


def test_chain_sampled_most_often_comes_first_whatever_its_wording() -> None:
    rare_but_likely_text = trace(SUM, BUY, END, logprob=-0.1)
    items = select(right(logprob=-5.0), rare_but_likely_text, trace(WORDY, SUM, END, logprob=-6.0))
    assert [item.count for item in items] == [2, 1]
    assert [item.rank for item in items] == [0, 1]
    assert select(right(), rare_but_likely_text, per_problem=1)[0].trace is rare_but_likely_text


def test_false_equations_stay_only_if_asked() -> None:
    lucky = trace(LUCKY, SUM, END)
    assert select(lucky) == []
    selection = select_traces([lucky], per_problem=1, require_equations=False)
    assert [item.trace for item in selection] == [lucky]
    assert (selection.funnel.correct, selection.funnel.verified, selection.funnel.kept) == (1, 0, 1)


def test_more_wordings_are_the_least_alike_and_come_after_every_chain() -> None:
    near = trace("She buys 3 * 4 = 12 red apples.\n", SUM, END, logprob=-2.0)
    far = trace("Bags hold 3*4 = 12.\n", SUM, END, logprob=-9.0)
    other = trace(SUM, BUY, END, logprob=-4.0)
    items = select(right(), near, far, other, wordings=2)
    assert [item.trace for item in items] == [right(), other, far]


@given(st.randoms(use_true_random=False))
def test_order_of_the_traces_does_not_matter(rng: random.Random) -> None:
    traces = [
        right(),
        right(source="search"),
        trace(WORDY, SUM, END),
        trace(SUM, BUY, END),
        wrong(),
        right(question="Q?"),
    ]
    expected = select(*traces, wordings=2)
    rng.shuffle(traces)
    assert select(*traces, wordings=2) == expected


def test_weights_fall_with_the_solve_rate() -> None:
    rates = solve_rates([right(), wrong(), wrong(), wrong(), right(start=1)])  # the last continues another's state
    (rate,) = rates.values()
    assert rate == 0.25
    (item,) = select(right(), solve_rate=rates)
    assert item.weight == informed_weight(0.25)
    assert informed_weight(0.0) == 1.0 > informed_weight(0.5) > informed_weight(1.0) > 0
    assert select(right())[0].weight == 1.0


def test_only_one_problem_is_held_at_a_time() -> None:
    reads = []

    def source() -> Iterator[Trace]:
        for question in sorted(("one?", "two?", "three?"), key=lambda q: right(question=q).problem_id):
            reads.append(question)
            yield right(question=question)

    selection = iter(select_traces(source(), per_problem=1, require_equations=True))
    next(selection)
    assert len(reads) == 2  # the second one shows that the first problem is complete


def test_stream_out_of_order_is_refused_and_a_list_is_sorted() -> None:
    traces = sorted((right(question=q) for q in ("one?", "two?")), key=lambda t: t.problem_id, reverse=True)
    with pytest.raises(UserError, match="sort the journal"):
        list(select_traces(iter(traces), per_problem=1, require_equations=True))
    assert [item.trace for item in select(*traces)] == traces[::-1]


def test_merged_streams_count_together() -> None:
    more = right(question="one?")
    (a, b) = select_traces(merge_traces([right(), more], [right()]), per_problem=1, require_equations=True)
    assert {a.count, b.count} == {1, 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"per_problem": 0}, "per_problem"), ({"wordings": 0}, "wordings"), ({"solve_rate": {"p": 1.5}}, "solve rate")],
)
def test_numbers_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(right(), **fields)  # type: ignore[arg-type]


def pool(problems: int, each: int = 3) -> list[KeptTrace]:
    items = []
    for p in range(problems):
        for rank in range(each):
            made = right(question=f"problem {p}?")
            items.append(KeptTrace(made, (str(rank),), 1, rank, 0.1 if p % 2 else 1.0))
    return items


@given(st.integers(1, 400), st.integers(0, 5), st.sampled_from(["random", "uniform", "informed"]))
def test_budget_is_the_longest_prefix_of_the_order_and_never_exceeded(tokens: int, seed: int, order: str) -> None:
    items = pool(8)
    chosen = within_budget(iter(items), tokens, order, seed=seed)  # type: ignore[arg-type]
    assert sum(item.tokens for item in chosen) <= tokens
    assert len(chosen) == min(len(items), tokens // items[0].tokens)  # all have the same length here
    traces = [item.trace for item in chosen]
    assert traces == [item.trace for item in items if any(item.trace is trace for trace in traces)]


def test_a_trace_that_does_not_fit_ends_the_taking_wherever_it_stands() -> None:
    items = [KeptTrace(right(question=f"{n}?"), (), 1, rank) for rank, n in enumerate((5, 8, 3))]
    items[1] = KeptTrace(trace("a " * 500 + "\n", END, question="long?"), (), 1, 1)
    room = items[0].tokens + items[2].tokens
    for arrangement in (items, items[::-1], [items[0], items[2], items[1]]):
        # The order is by rank: the long one is second, so the short third one must not slip in.
        assert [item.rank for item in within_budget(arrangement, room, "uniform", seed=0)] == [0]


def test_uniform_gives_every_problem_its_first_trace_first() -> None:
    items = pool(6)
    chosen = within_budget(items, 6 * items[0].tokens, "uniform", seed=1)
    assert [item.rank for item in chosen] == [0] * 6


def test_informed_prefers_problems_that_are_rarely_solved() -> None:
    items = pool(200, each=1)
    heavy = {item.trace.question for item in items if item.weight == 1.0}
    chosen = within_budget(items, 60 * items[0].tokens, "informed", seed=1)
    assert 45 <= sum(item.trace.question in heavy for item in chosen) < 60  # 60 of 100 heavy ones and 100 light ones
    at_random = within_budget(items, 60 * items[0].tokens, "random", seed=1)
    assert sum(item.trace.question in heavy for item in at_random) < 45


def test_an_informed_draw_has_used_the_weights() -> None:
    items = pool(20, each=1)
    assert {item.weight for item in within_budget(items, 10**6, "informed", seed=1)} == {1.0}
    assert within_budget(items, 10**6, "uniform", seed=1) == items


def test_a_draw_counts_what_it_took() -> None:
    selection = select_traces([right(question=f"{n}?") for n in range(9)], per_problem=1, require_equations=True)
    drawn = draw(selection, 4 * right_tokens(), "random", seed=0)
    assert len(list(drawn)) == 4
    assert (drawn.funnel.kept, drawn.funnel.drawn) == (9, 4)


def right_tokens() -> int:
    (item,) = select(right())
    return item.tokens


def tree(question: str, *nodes: tuple[int, str, float | None, int]) -> dict[str, Any]:
    """A search tree as JSON data: nodes of (parent, text, V, merged) below the question."""
    rows = [{"parent": p, "key": step_key(text), "value": v, "merged": m} for p, text, v, m in nodes]
    return {"problem_id": problem_id(question), "nodes": [{"parent": None, "key": "", "value": None}, *rows]}


def test_trees_tell_the_advantage_of_every_step_they_know() -> None:
    grown = tree(QUESTION, (0, BUY, 0.9, 3), (0, "3 + 4 = 7\n", 0.1, 1), (1, SUM, 0.8, 2))
    other = tree("Another?", (0, BUY, 0.5, 1))
    first, second, end = select(right(), trees=sorted([grown, other], key=lambda t: t["problem_id"]))[0].choices
    assert first is not None
    assert second is not None
    assert first.advantage == pytest.approx(0.9 - (3 * 0.9 + 0.1) / 4)
    assert first.spread == pytest.approx(0.8)
    assert first.junction
    assert (second.advantage, second.spread, second.junction) == (0.0, 0.0, False)
    assert end is None, "the tree never got there"
    assert select(right())[0].choices == ()


def test_budget_and_order_are_checked() -> None:
    with pytest.raises(UserError, match="token budget"):
        within_budget([], 0, "random", seed=0)
    with pytest.raises(UserError, match="unknown order"):
        within_budget([], 5, "best", seed=0)  # type: ignore[arg-type]
