"""AdamW for bfloat16 models with float32 master copies of the weights.

Objective: bfloat16 has 8 bits of precision, so an update smaller than about 1/256 of a weight would be rounded away.
Each step therefore runs in float32 on a master copy and the model gets the rounded result:

    m <- AdamW(m, float32(grad)),   p <- bfloat16(m)

Paper: Micikevicius et al., Mixed Precision Training, 2018 (section 3.1); AdamW: Loshchilov and Hutter, 2019.
Departure: no loss scaling, because bfloat16 has the exponent range of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MasterAdamW(torch.optim.AdamW):
    """AdamW over float32 copies of the given parameters; `param_groups` and the state hold the copies.

    params: parameter groups, as for torch.optim.AdamW, of any floating type.
    """

    def __init__(self, params: Any, **kwargs: Any) -> None:
        groups = [g if isinstance(g, dict) else {"params": [g]} for g in params]
        self._pairs: list[tuple[Tensor, Tensor]] = []
        master_groups = []
        for group in groups:
            masters = [p.detach().float().clone() for p in group["params"]]
            self._pairs.extend(zip(group["params"], masters, strict=True))
            master_groups.append({**group, "params": masters})
        super().__init__(master_groups, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the masters from the model's gradients and round them into the model."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        loss: float | None = super().step(closure)
        for parameter, master in self._pairs:
            parameter.copy_(master)
            master.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the model's parameters."""
        for parameter, _ in self._pairs:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW and the master copies, in the order of the parameters."""
        return {**super().state_dict(), "masters": [master for _, master in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore AdamW and the masters, and round the masters into the model."""
        state_dict = dict(state_dict)
        masters = state_dict.pop("masters")
        super().load_state_dict(state_dict)
        for (parameter, master), saved in zip(self._pairs, masters, strict=True):
            master.copy_(saved)
            parameter.copy_(master)
