"""vLLM in this process against transformers, on a tiny random model. Skipped where vLLM is not installed."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from qstar.config import PolicyConfig, ScratchConfig
from qstar.errors import UserError
from qstar.policy.prompt import SEPARATOR, encode_prompt
from qstar.policy.scratch import new_model
from qstar.types import Request, State
from tests.tiny import tokenizer as tiny_tokenizer

CONFIG = PolicyConfig(calculator="off", temperature=0.8, top_k=20, max_step_tokens=12, max_steps=4, batch_rows=32)
QUESTION = "Tom has 3 bags with 4 apples each."


def test_a_missing_vllm_is_one_clear_line() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        from qstar.policy.in_vllm import VllmPolicy

        with pytest.raises(UserError, match="vllm, which is not installed"):
            VllmPolicy("folder", None, CONFIG)
    else:
        pytest.skip("vLLM is installed here")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The policy in vLLM, and the model and tokenizer it was made from."""
    pytest.importorskip("vllm")
    from qstar.policy.in_vllm import VllmPolicy

    folder = tmp_path_factory.mktemp("model")
    # vLLM's attention on CPUs wants heads of at least 32.
    shape = ScratchConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=96, max_positions=1024)
    tokenizer = tiny_tokenizer()
    model = new_model(shape, tokenizer, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return VllmPolicy(str(folder), tokenizer, CONFIG, enforce_eager=True), model.eval(), tokenizer


def propose(policy: Any, *requests: Request) -> dict[int, Any]:
    return {proposal.request.seed: proposal for proposal in policy.propose(deque(requests))}


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token under the sampling distribution."""
    with torch.inference_mode():
        raw = model(input_ids=torch.tensor([ids])).logits[0, -1].float() / CONFIG.temperature
    kept = torch.full_like(raw, -torch.inf)
    top = raw.topk(CONFIG.top_k)
    kept[top.indices] = top.values
    return kept.log_softmax(-1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_contract_of_a_policy(pair: tuple[Any, Any, Any]) -> None:
    policy, model, tokenizer = pair
    state = State(QUESTION)
    requests = [Request(state, 5, seed, 0.8, 4, 12, 30) for seed in range(6)]
    found = propose(policy, *requests)
    assert found.keys() == set(range(6))
    for request in requests:
        proposal = found[request.seed]
        assert proposal.request is request
        assert len(proposal.candidates) == 5
        assert proposal.prompt_tokens >= 0
        for candidate in proposal.candidates:
            assert 0 < candidate.tokens <= 30
            assert len(candidate.steps) <= 4
            ids = encode_prompt(tokenizer, QUESTION)
            for step in candidate.steps:
                assert SEPARATOR not in step.text.rstrip(SEPARATOR)
                expected = 0.0
                for token in step.token_ids:
                    expected += float(logits(model, ids)[token])
                    ids.append(token)
                assert step.logprob == pytest.approx(expected, abs=0.02)
    again = propose(policy, requests[0])[0]
    assert [c.steps for c in again.candidates] == [c.steps for c in found[0].candidates]
    # The cache works by blocks of up to 128 tokens.
    long = Request(State(QUESTION * 12), 2, 0, 0.8, 1, 12, 12)
    assert propose(policy, long)[0].prompt_tokens > 256
    repeated = propose(policy, long)[0]
    assert repeated.cached_tokens >= 256


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_greedy_steps_are_those_of_transformers(pair: tuple[Any, Any, Any]) -> None:
    policy, model, tokenizer = pair
    (candidate,) = propose(policy, Request(State(QUESTION), 1, 0, 0.0, 4, 12, 12))[0].candidates
    ids = encode_prompt(tokenizer, QUESTION)
    with torch.inference_mode():
        expected = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=12)[
            0, len(ids) :
        ].tolist()
    written = [token for step in candidate.steps for token in step.token_ids]
    assert written == expected[: len(written)]
    assert candidate.steps or candidate.finish == "length"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_first_tokens_come_with_their_probabilities(pair: tuple[Any, Any, Any]) -> None:
    policy, model, tokenizer = pair
    drawn = 3000
    (proposal,) = propose(policy, Request(State(QUESTION), drawn, 7, 0.8, 1, 12, 12)).values()
    # Steps cut by the cap show no tokens. How many steps end with their first or second token is known exactly.
    prompt = encode_prompt(tokenizer, QUESTION)
    first = logits(model, prompt).exp()
    ends = [i for i in range(len(first)) if SEPARATOR in tokenizer.decode([i]) or i == tokenizer.eos_token_id]
    second = sum(
        float(first[i] * logits(model, [*prompt, i]).exp()[ends].sum())
        for i in first.nonzero()[:, 0].tolist()
        if i not in ends
    )
    for length, expected in ((1, float(first[ends].sum())), (2, second)):
        share = sum(candidate.tokens == length for candidate in proposal.candidates) / drawn
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / drawn) ** 0.5 + 1e-3)
