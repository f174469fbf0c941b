"""AdamW with float32 master copies."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from qstar.policy.masters import MasterAdamW


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).to(torch.bfloat16).to(dtype)  # the same start in every dtype


def gradients(step: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step)).bfloat16()


def run(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for parameter in model.parameters():
            parameter.grad = gradients(step, parameter.shape).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_equals_float32_adamw_rounded_at_the_end() -> None:
    low, full = layer(torch.bfloat16), layer(torch.float32)
    options = {"lr": 1e-3, "weight_decay": 0.1}
    run(low, MasterAdamW(low.parameters(), **options), range(50))
    run(full, torch.optim.AdamW(full.parameters(), **options), range(50))
    for a, b in zip(low.parameters(), full.parameters(), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def test_updates_too_small_for_bfloat16_add_up() -> None:
    results = []
    for kind in (MasterAdamW, torch.optim.AdamW):
        model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer = kind(model.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(200):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        results.append(model.weight.item())
    assert results[1] == 1.0  # every update was rounded away
    assert abs(results[0] - 0.98) < 2**-8


def test_zero_grad_clears_the_gradients_of_the_model() -> None:
    model = layer(torch.bfloat16)
    optimizer = MasterAdamW(model.parameters(), lr=1e-3)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.zero_grad(set_to_none=False)
    assert model.weight.grad is not None
    assert not model.weight.grad.any()
    optimizer.zero_grad()
    assert model.weight.grad is None


def test_a_parameter_without_gradient_stays() -> None:
    model = layer(torch.bfloat16)
    before = model.bias.clone()
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, before)


def test_groups_keep_their_own_settings() -> None:
    model = layer(torch.bfloat16)
    start = [p.clone() for p in model.parameters()]
    groups = [{"params": [model.weight], "lr": 0.0}, {"params": [model.bias], "lr": 0.1}]
    run(model, MasterAdamW(groups, weight_decay=0.0), range(1))
    assert torch.equal(model.weight, start[0])
    assert not torch.equal(model.bias, start[1])


def test_a_saved_state_continues_exactly_and_is_safe_to_load() -> None:
    whole = layer(torch.bfloat16)
    run(whole, MasterAdamW(whole.parameters(), lr=1e-3), range(20))
    first = layer(torch.bfloat16)
    optimizer = MasterAdamW(first.parameters(), lr=1e-3)
    run(first, optimizer, range(7))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = nn.Linear(6, 4).to(torch.bfloat16)
    resumed = MasterAdamW(other.parameters(), lr=1e-3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), first.parameters(), strict=True))
    run(other, resumed, range(7, 20))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), whole.parameters(), strict=True))
