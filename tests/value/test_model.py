"""Scoring states: right position, right layers, any batch."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.policy.engine import LanguageModelPolicy
from qstar.types import Request, State, Step
from qstar.value.head import ValueHead
from qstar.value.model import PACKED, ValueModel, length_batches, read_hidden, read_packed, state_ids
from tests import tiny
from tests.value.data import trace
from tests.value.test_head import config

TOKENIZER = tiny.tokenizer()
STEPS = ["She buys 3 * 4 = 12 apples.\n", "She has 12 + 12 = 24 apples.\n", "#### 24"]


def value_model(layers: tuple[int, ...] = (0, -1), trunk: str = "separate", kind: str = "llama") -> ValueModel:
    torch.manual_seed(3)
    head = ValueHead(config(layers=layers, trunk=trunk))
    torch.nn.init.normal_(head.outer.weight, std=2.0)
    return ValueModel(tiny.model(kind), TOKENIZER, head)


@pytest.mark.parametrize("layers", [(-1,), (0, -2), (1, -1)])
def test_decoding_reads_the_same_values_as_scoring_afterwards(layers: tuple[int, ...]) -> None:
    model = value_model(layers, trunk="frozen")
    config = PolicyConfig(calculator="off", batch_rows=8, top_k=320)
    policy = LanguageModelPolicy(model.trunk, TOKENIZER, config, model.head)
    start = State("Ann has 12 apples. How many?")
    request = Request(start, n=24, seed=1, max_steps=3, max_step_tokens=80, max_tokens=120)
    (proposal,) = policy.propose(deque([request]))
    found = [
        (start.then(*candidate.steps[: depth + 1]), step.value)
        for candidate in proposal.candidates
        for depth, step in enumerate(candidate.steps)
    ]
    assert len(found) >= 3  # a random model seldom writes a newline
    assert model.score([state for state, _ in found]) == pytest.approx([value for _, value in found], abs=1e-4)


def states() -> list[State]:
    one = trace(TOKENIZER, "12", STEPS, True)
    return [one.state(depth) for depth in range(4)] + [State("A much longer question about " + "apples " * 20)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_hidden_states_are_those_of_the_numbered_layers(kind: str) -> None:
    trunk, rows = tiny.model(kind), [[5, 6, 7, 8, 9], [10, 11]]
    got = read_hidden(trunk, rows, [[1, 4], [1]], (0, -2, -1))
    with torch.no_grad():
        for at, (row, end) in enumerate([(0, 1), (0, 4), (1, 1)]):
            full = trunk(torch.tensor([rows[row]]), output_hidden_states=True).hidden_states
            # hidden_states[0] is the embedding; the last entry has gone through the final norm.
            for layer, expected in enumerate([full[1], full[1], full[2]]):
                assert torch.allclose(got[at, layer], expected[0, end], atol=1e-5)


def test_a_value_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = value_model()
    together = model.score(states())
    alone = [model.score([state])[0] for state in states()]
    assert together == pytest.approx(alone, abs=1e-5)
    assert model.score(states()[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert len({round(value, 4) for value in together}) == 5
    assert all(0 < value < 1 for value in together)
    assert model.score([]) == []


def test_scores_use_the_token_ids_of_the_steps_and_count_them() -> None:
    model = value_model()
    ids = tuple(TOKENIZER.encode("apples"))
    split = State("Why?", (Step("12", (ids[0],), 0.0), Step("", ids[1:], 0.0)))
    whole = State("Why?", (Step("ignored text", ids, 0.0),))
    scores = model.score([split, whole])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert model.tokens_encoded == len(state_ids(TOKENIZER, whole))


def test_states_along_one_path_are_encoded_once_and_scored_as_alone() -> None:
    model = value_model()
    steps = [Step(text, tuple(TOKENIZER.encode(text)), -1.0) for text in ("4 + 5 = 9\n", "9 * 2 = 18\n", "#### 18")]
    path = [State("Why?", tuple(steps[:depth])) for depth in range(4)]
    other = State("Why?", (steps[1],))
    mixed = [path[2], other, path[0], path[3], path[1]]
    together = model.score(mixed)
    assert model.tokens_encoded == len(state_ids(TOKENIZER, path[3])) + len(state_ids(TOKENIZER, other))
    assert together == pytest.approx([value_model().score([state])[0] for state in mixed], abs=1e-5)


def test_a_state_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UserError, match="context is 256"):
        value_model().score([State("apples " * 400)])


def test_a_layer_the_trunk_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="layers 0 to 1"):
        value_model(layers=(2,))


def test_batches_cover_every_row_once_within_the_budget() -> None:
    lengths = [3, 50, 7, 7, 120, 1, 49]
    batches = list(length_batches(lengths, budget=100))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 100 for b in batches)
    assert list(length_batches([])) == []


def test_a_saved_value_model_scores_the_same_and_replaces_an_older_one(tmp_path: Path) -> None:
    value_model(layers=(0, 1)).save_pretrained(tmp_path)
    model = value_model()
    model.save_pretrained(tmp_path)
    loaded = ValueModel.from_pretrained(tmp_path)
    assert loaded.score(states()) == pytest.approx(model.score(states()), abs=1e-6)
    half = ValueModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert half.score(states()) == pytest.approx(model.score(states()), abs=0.2)


def test_a_head_for_a_shared_trunk_is_not_a_value_model(tmp_path: Path) -> None:
    value_model(trunk="frozen").head.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a separate value model"):
        ValueModel.from_pretrained(tmp_path)


def test_a_shared_prompt_encoded_once_gives_the_states_of_rows_alone() -> None:
    model = tiny.model(context=512)
    numbers = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(1, 300, (count,), generator=numbers).tolist()

    one, two = some(20), some(31)
    rows = [one + some(5 + i) for i in range(PACKED + 3)] + [two + some(9), two + some(30)]
    prompts = [20] * (PACKED + 3) + [31] * 2
    ends = [[len(row) - 4, len(row) - 1] for row in rows]
    alone = read_hidden(model, rows, ends, [0, -1])
    packed, written = read_packed(model, rows, prompts, ends, [0, -1])
    assert torch.allclose(alone, packed, atol=1e-5)
    states = [model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    expected = torch.cat([state[prompt - 1 :] for state, prompt in zip(states, prompts, strict=True)])
    assert torch.allclose(expected, written, atol=1e-5)
    weight = model.base_model.layers[0].mlp.up_proj.weight
    gradients = [torch.autograd.grad(found.square().sum(), weight)[0] for found in (alone, packed)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4)
