"""The decoding engine: agreement with transformers, independence of the batch, caps, values, cache, calculator."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.policy.engine import LanguageModelPolicy
from qstar.policy.prompt import encode_prompt
from qstar.policy.rows import Row
from qstar.policy.store import Store
from qstar.policy.tiles import positions_read
from qstar.types import Candidate, Proposal, Request, State, Step
from qstar.value.features import path_features
from tests import tiny

QUESTIONS = ["How many apples?", "Ann has 12 apples and buys 3 bags.", "A pen costs $1.50. How much do 6 cost?", "Why?"]
CONFIG = PolicyConfig(top_k=40, batch_rows=8, cache_megabytes=16, calculator="off")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def policy(
    tokenizer: Any, kind: str = "llama", head: Any = None, model: Any = None, caching: bool = True, **changes: Any
) -> LanguageModelPolicy:
    p = LanguageModelPolicy(model or tiny.model(kind), tokenizer, replace(CONFIG, **changes), head)
    p.caching = caching
    return p


def answers(p: LanguageModelPolicy, requests: list[Request]) -> dict[Request, Proposal]:
    return {proposal.request: proposal for proposal in p.propose(deque(requests))}


def rollouts(n: int = 5, **changes: Any) -> list[Request]:
    settings: dict[str, Any] = {"max_steps": 4, "max_step_tokens": 60, "max_tokens": 90, **changes}
    return [Request(State(q), n, seed, **settings) for seed, q in enumerate(QUESTIONS)]


def same(a: Candidate, b: Candidate, tolerance: float = 0.0) -> None:
    assert (a.finish, a.tokens) == (b.finish, b.tokens)
    assert [s.token_ids for s in a.steps] == [s.token_ids for s in b.steps]
    assert [s.text for s in a.steps] == [s.text for s in b.steps]
    # Unless told otherwise, to the last bit: a run continued with other batches must end in the same bytes.
    assert [s.logprob for s in a.steps] == pytest.approx([s.logprob for s in b.steps], rel=0, abs=tolerance)
    values, others = ([-1.0 if s.value is None else s.value for s in c.steps] for c in (a, b))
    assert values == pytest.approx(others, rel=0, abs=tolerance)


class MeanHead:
    """A value that reads two hidden states and the path, computed the same way outside the engine."""

    layers = (0, -1)

    def __call__(self, hidden: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        assert hidden.dtype == torch.float32
        return hidden.mean(dim=(1, 2)) + hidden[:, 0, 0] + paths.sum(dim=1) / 100


class MatrixHead(MeanHead):
    """A value by a matrix product, whose rounding depends on the number of rows."""

    def __init__(self) -> None:
        self.weight = torch.randn(32, 1, generator=torch.Generator().manual_seed(0))

    def __call__(self, hidden: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        return (hidden[:, -1] @ self.weight)[:, 0] / 10


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_greedy_agrees_with_transformers(kind: str, tokenizer: Any) -> None:
    model = tiny.model(kind)
    p = policy(tokenizer, model=model)
    requests = [replace(r, n=1, temperature=0.0) for r in rollouts(max_steps=50, max_step_tokens=90)]
    for request, proposal in answers(p, requests).items():
        prompt = torch.tensor([encode_prompt(tokenizer, request.state.question)])
        expected = model.generate(prompt, do_sample=False, max_new_tokens=90)[0, prompt.shape[1] :].tolist()
        (candidate,) = proposal.candidates
        got = [t for step in candidate.steps for t in step.token_ids]
        assert got == expected[: len(got)]
        assert candidate.tokens <= len(expected)
        if candidate.finish == "terminal" and got[-1] == tokenizer.eos_token_id:
            assert got == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_candidates_do_not_depend_on_the_batch(kind: str, tokenizer: Any) -> None:
    model, head = tiny.model(kind), MatrixHead()
    requests = rollouts()
    reference = answers(policy(tokenizer, model=model, head=head, batch_rows=1), requests)
    assert len({c.steps for p in reference.values() for c in p.candidates}) > 5
    shuffled = random.Random(1).sample(requests, len(requests))
    for other in (
        answers(policy(tokenizer, model=model, head=head, batch_rows=64), requests),
        answers(policy(tokenizer, model=model, head=head), shuffled),
        answers(policy(tokenizer, model=model, head=head, caching=False), shuffled),
    ):
        for request in requests:
            for a, b in zip(reference[request].candidates, other[request].candidates, strict=True):
                same(a, b)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_values_are_those_of_the_whole_text(kind: str, tokenizer: Any) -> None:
    model, head = tiny.model(kind), MeanHead()
    p = policy(tokenizer, model=model, head=head)
    checked = 0
    for request, proposal in answers(p, rollouts(n=8)).items():
        ids = encode_prompt(tokenizer, request.state.question)
        for candidate in proposal.candidates:
            text = list(ids)
            for depth, step in enumerate(candidate.steps, start=1):
                text += step.token_ids
                with torch.no_grad():
                    states = model.model(torch.tensor([text]), output_hidden_states=True).hidden_states
                hidden = torch.stack([states[1][:, -1], states[-1][:, -1]], dim=1)
                paths = torch.tensor([path_features(request.state.question, candidate.steps[:depth])])
                expected = head(hidden, paths).sigmoid().item()
                assert step.value == pytest.approx(expected, abs=1e-4)
                checked += 1
    assert checked > 10


def test_log_probabilities_are_those_of_the_model(tokenizer: Any) -> None:
    model = tiny.model()
    requests = rollouts(n=8, temperature=1.3)
    checked = 0
    for request, proposal in answers(policy(tokenizer, model=model), requests).items():
        prompt = encode_prompt(tokenizer, request.state.question)
        for candidate in proposal.candidates:
            text = list(prompt)
            for step in candidate.steps:
                with torch.no_grad():
                    logits = model(torch.tensor([[*text, *step.token_ids]])).logits[0, len(text) - 1 : -1] / 1.3
                cut = logits.topk(CONFIG.top_k).values[:, -1:]
                logprobs = logits.masked_fill(logits < cut, float("-inf")).log_softmax(-1)
                expected = logprobs[range(len(step.token_ids)), step.token_ids].sum().item()
                assert step.logprob == pytest.approx(expected, abs=1e-3)
                text += step.token_ids
                checked += 1
    assert checked > 10


def test_a_child_encodes_nothing_its_parent_encoded(tokenizer: Any) -> None:
    p = policy(tokenizer)
    first = Request(State(QUESTIONS[0]), 6, seed=3, max_step_tokens=60, max_tokens=60)
    proposal = answers(p, [first])[first]
    prompt = len(encode_prompt(tokenizer, QUESTIONS[0]))
    assert (proposal.prompt_tokens, proposal.cached_tokens) == (prompt, 0)
    children = [c.steps[0] for c in proposal.candidates if c.finish == "step"]
    assert children
    requests = [Request(State(QUESTIONS[0], (step,)), 2, seed=i) for i, step in enumerate(children)]
    cached = answers(p, requests)
    for request, child in zip(requests, children, strict=True):
        assert (cached[request].prompt_tokens, cached[request].cached_tokens) == (0, prompt + len(child.token_ids))
    cold = answers(policy(tokenizer, caching=False), requests)
    for request, child in zip(requests, children, strict=True):
        assert (cold[request].prompt_tokens, cold[request].cached_tokens) == (prompt + len(child.token_ids), 0)
        for a, b in zip(cached[request].candidates, cold[request].candidates, strict=True):
            same(a, b, tolerance=1e-3)  # a prefix encoded at once rounds otherwise than one decoded token by token


def test_equal_prefixes_in_one_queue_are_encoded_once(tokenizer: Any) -> None:
    requests = [Request(State(QUESTIONS[1]), 2, seed) for seed in range(3)]
    proposals = answers(policy(tokenizer, batch_rows=64), requests).values()
    assert sum(p.prompt_tokens for p in proposals) == len(encode_prompt(tokenizer, QUESTIONS[1]))


def test_requests_appended_between_proposals_are_served(tokenizer: Any) -> None:
    queue = deque(rollouts(n=2))
    seen = []
    for proposal in policy(tokenizer).propose(queue):
        seen.append(proposal.request)
        if len(seen) < 12:
            queue.append(replace(proposal.request, seed=100 + len(seen)))
    assert len(seen) == len(set(seen)) == 4 + 11


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 30])
@pytest.mark.parametrize("max_step_tokens", [2, 20])
def test_caps_are_kept_and_every_token_is_counted(max_tokens: int, max_step_tokens: int, tokenizer: Any) -> None:
    requests = rollouts(n=8, max_tokens=max_tokens, max_step_tokens=max_step_tokens)
    for proposal in answers(policy(tokenizer), requests).values():
        assert len(proposal.candidates) == 8
        for c in proposal.candidates:
            kept = sum(len(s.token_ids) for s in c.steps)
            assert 1 <= c.tokens <= max_tokens
            assert kept <= c.tokens
            assert all(len(s.token_ids) <= max_step_tokens for s in c.steps)
            assert all(s.text.strip() for s in c.steps[:-1])
            if c.finish != "length":
                assert kept == c.tokens
            if c.finish == "step":
                assert len(c.steps) == 4
                assert "\n" in c.steps[-1].text


def test_a_continuation_stops_at_the_model_s_context(tokenizer: Any) -> None:
    model = tiny.model(context=64)
    prompt = len(encode_prompt(tokenizer, QUESTIONS[1]))
    requests = rollouts(max_steps=50, max_step_tokens=500, max_tokens=500)
    for proposal in answers(policy(tokenizer, model=model), requests[1:2]).values():
        assert all(c.tokens <= 64 - prompt for c in proposal.candidates)
        assert any(c.tokens == 64 - prompt and c.finish == "length" for c in proposal.candidates)


def test_a_state_that_fills_the_context_has_no_children(tokenizer: Any) -> None:
    step = Step("long\n", tuple([5] * 60), 0.0)
    request = Request(State(QUESTIONS[0], (step,)), 2, 0)
    (candidates,) = [x.candidates for x in policy(tokenizer, model=tiny.model(context=64)).propose(deque([request]))]
    assert candidates == (Candidate((), "length", 0),) * 2


def test_a_question_longer_than_the_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="longer context"):
        answers(policy(tokenizer, model=tiny.model(context=64)), [Request(State("apples " * 60), 1, 0)])


def test_no_candidates_and_no_tokens(tokenizer: Any) -> None:
    none, broke = Request(State("Why?"), 0, 0), Request(State("Why?"), 2, 0, max_tokens=0)
    found = answers(policy(tokenizer), [none, broke])
    assert found[none].candidates == ()
    assert found[broke].candidates == (Candidate((), "length", 0),) * 2


def test_a_state_of_which_only_the_beginning_is_cached(tokenizer: Any) -> None:
    model = tiny.model()
    step = Step("2 + 3 = 5\n", tuple(tokenizer.encode("2 + 3 = 5\n")), 0.0)
    request = Request(State(QUESTIONS[0], (step,)), 6, 7, max_steps=3, max_step_tokens=20, max_tokens=40)
    whole = answers(policy(tokenizer, model=model), [request])[request]
    p = policy(tokenizer, model=model)
    answers(p, rollouts())  # the prompt is cached, and other prompts were decoded at the same places since
    answers(p, rollouts()[1:])
    rest = answers(p, [request])[request]
    assert (rest.prompt_tokens, rest.cached_tokens) == (
        len(step.token_ids),
        len(encode_prompt(tokenizer, QUESTIONS[0])),
    )
    for a, b in zip(whole.candidates, rest.candidates, strict=True):
        same(a, b)


def test_an_abandoned_iterator_leaves_the_policy_usable(tokenizer: Any) -> None:
    p = policy(tokenizer)
    iterator = p.propose(deque(rollouts()))
    next(iterator)
    during = answers(p, rollouts())
    iterator.close()
    for request, proposal in answers(p, rollouts()).items():
        for a, b in zip(proposal.candidates, during[request].candidates, strict=True):
            same(a, b)


@pytest.mark.parametrize("caching", [True, False])
def test_keys_and_values_stay_within_the_budget_and_change_nothing(
    caching: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, head, requests = tiny.model(), MatrixHead(), rollouts(n=6)
    reference = answers(policy(tokenizer, model=model, head=head, batch_rows=64, caching=caching), requests)
    monkeypatch.setattr("qstar.policy.engine.MEGABYTE", 350_000)
    p = policy(tokenizer, model=model, head=head, batch_rows=64, caching=caching, cache_megabytes=1)
    forward, rows, held = p._forward, [], []

    def watched(work: Any, *args: Any) -> None:
        rows.append(len(work.rows.items))
        forward(work, *args)
        held.append(p.cache.nbytes + sum(store.nbytes for store in p._stores))

    monkeypatch.setattr(p, "_forward", watched)
    shed = 0

    def reset(row: Any, cached: bool, inner: Any = Row.reset) -> None:
        nonlocal shed
        shed += 1
        inner(row, cached)

    monkeypatch.setattr(Row, "reset", reset)
    found = answers(p, requests)
    assert 100_000 < max(held) <= 350_000
    assert (shed > 0, max(rows) > 6) == (True, True)  # rows grew too long for all of them, and some waited
    for request in requests:
        for a, b in zip(reference[request].candidates, found[request].candidates, strict=True):
            same(a, b)


def test_sorted_rows_are_read_less_and_change_nothing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qstar.policy.tiles.BLOCK", 4)
    monkeypatch.setattr("qstar.policy.tiles.MERGED", 0)
    model, head, requests = tiny.model(), MatrixHead(), rollouts(n=6)

    def watched(moving: float) -> tuple[Any, int, int]:
        monkeypatch.setattr("qstar.policy.store.MOVING", moving)
        p = policy(tokenizer, model=model, head=head, batch_rows=12)
        run, permute, read, sorts = p._run, Store.permute, 0, 0

        def counted(prefixes: Any, rows: Any, tokens: Any, lengths: Any, decoding: Any, spans: Any) -> Any:
            nonlocal read
            read += positions_read(lengths) + positions_read([own + 1 for _, own in decoding])
            return run(prefixes, rows, tokens, lengths, decoding, spans)

        def counting(store: Any, *args: Any) -> None:
            nonlocal sorts
            sorts += 1
            permute(store, *args)

        monkeypatch.setattr(p, "_run", counted)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "permute", counting)
            return answers(p, requests), read, sorts

    (lying, read, never), (moved, less, often) = watched(1e9), watched(0.1)
    assert never == 0
    assert often > 3
    assert less < read
    for request in requests:
        for a, b in zip(lying[request].candidates, moved[request].candidates, strict=True):
            same(a, b)


def test_a_continuation_that_cannot_fit_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qstar.policy.engine.MEGABYTE", 120_000)
    p = policy(tokenizer, cache_megabytes=1)
    with pytest.raises(
        UserError, match=r"policy\.cache_megabytes is 1; .* continuation of up to \d+ tokens need 2: raise"
    ):
        answers(p, rollouts(max_tokens=200))
    assert answers(p, rollouts(max_tokens=20))


def test_many_prompts_are_encoded_in_several_passes(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = answers(policy(tokenizer), rollouts())
    monkeypatch.setattr("qstar.policy.engine.ENCODED_AT_ONCE", 30)
    p = policy(tokenizer)
    run, passes = p._run, []

    def watched(*args: Any) -> Any:
        passes.append([count for _, _, count in args[-1]])
        return run(*args)

    monkeypatch.setattr(p, "_run", watched)
    found = answers(p, rollouts())
    assert all(len(counts) <= 1 or sum(counts) <= 30 for counts in passes)
    assert sum(map(sum, passes)) == sum(x.prompt_tokens for x in found.values())
    for request, proposal in found.items():
        for a, b in zip(reference[request].candidates, proposal.candidates, strict=True):
            same(a, b)


class Writer(torch.nn.Module):
    """A model that writes a given text whatever it reads, to steer the engine's rules."""

    def __init__(self, tokenizer: Any, prompt: str, text: str) -> None:
        super().__init__()
        base = tiny.model()
        self.config, self.generation_config = base.config, base.generation_config
        self.dtype, self.device = base.dtype, base.device
        self.start = len(encode_prompt(tokenizer, prompt))
        self.target = torch.tensor(tokenizer.encode(text))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        at = (position_ids - self.start + 1).clamp(0, len(self.target) - 1)
        return BaseModelOutputWithPast(
            last_hidden_state=torch.nn.functional.one_hot(self.target[at], self.config.vocab_size).float() * 50
        )

    @property
    def base_model(self) -> Any:
        return self

    def get_output_embeddings(self) -> Any:
        return torch.nn.Identity()


def write(tokenizer: Any, text: str, max_steps: int = 9, **changes: Any) -> Candidate:
    """The greedy continuation of a model that wants to write `text`."""
    request = Request(State("Why?"), 1, 0, temperature=0.0, max_steps=max_steps, max_tokens=200)
    p = policy(tokenizer, model=Writer(tokenizer, "Why?", text), **changes)
    return answers(p, [request])[request].candidates[0]


@pytest.mark.parametrize(
    ("text", "finish", "steps"),
    [
        ("one\ntwo\n#### 5\nmore\n", "terminal", ["one\n", "two\n", "#### 5\n"]),
        ("one\n#### 5<|endoftext|>", "terminal", ["one\n", "#### 5"]),
        ("one\n<|endoftext|>", "terminal", ["one\n", ""]),
        ("one\n\ntwo\n", "length", ["one\n"]),
        ("one\n  \n#### 5\n", "length", ["one\n"]),
        ("one\ntwo two two two two two two two two two two two two two two two two two two two", "length", ["one\n"]),
    ],
)
@pytest.mark.parametrize("caching", [False, True])
def test_where_steps_and_continuations_end(
    text: str, finish: str, steps: list[str], caching: bool, tokenizer: Any
) -> None:
    candidate = write(tokenizer, text, caching=caching)
    assert (candidate.finish, [s.text for s in candidate.steps]) == (finish, steps)


def test_step_limit(tokenizer: Any) -> None:
    candidate = write(tokenizer, "one\ntwo\nthree\n", max_steps=2)
    assert (candidate.finish, [s.text for s in candidate.steps]) == ("step", ["one\n", "two\n"])


@pytest.mark.parametrize(
    ("calculator", "finish", "text"),
    [
        ("assist", "terminal", "She has 12 + 30 = 42 apples.\n"),
        ("off", "terminal", "She has 12 + 30 = 99 apples.\n"),
        ("prune", "length", None),
    ],
)
def test_calculator_modes(calculator: str, finish: str, text: str | None, tokenizer: Any) -> None:
    candidate = write(tokenizer, "She has 12 + 30 = 99 apples.\n#### 99\n", calculator=calculator)
    assert candidate.finish == finish
    assert [s.text for s in candidate.steps] == ([] if text is None else [text, "#### 99\n"])
    assert tokenizer.decode([t for s in candidate.steps for t in s.token_ids]) == "".join(
        s.text for s in candidate.steps
    )


def test_prune_keeps_true_equations(tokenizer: Any) -> None:
    candidate = write(tokenizer, "She has 12 + 30 = 42 apples.\n#### 42\n", calculator="prune")
    assert (candidate.finish, len(candidate.steps)) == ("terminal", 2)
