"""A value model: a language model's trunk, read at the last token of a state, and a head on top of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qstar.errors import UserError
from qstar.policy.prompt import encode_prompt, encode_written
from qstar.types import State, Step
from qstar.value.features import path_features
from qstar.value.head import ValueHead

BATCH_TOKENS = 8192
"""Padded tokens in one forward pass."""

PACKED = 8
"""Most solutions in one sequence with their prompt: attention grows with the square of its length."""

TRUNK_FOLDER = "trunk"


class ValueModel(nn.Module):
    """`qstar.types.Value` over a causal language model of its own.

    tokens_encoded: tokens passed through the trunk by `score` so far, padding not counted.
    """

    def __init__(self, trunk: Any, tokenizer: Any, head: ValueHead) -> None:
        super().__init__()
        head.config.check(hidden_size=trunk.config.get_text_config().hidden_size, tokenizer=tokenizer)
        check_layers(trunk, head.layers)
        self.trunk, self.tokenizer, self.head = trunk, tokenizer, head
        self.tokens_encoded = 0

    @torch.inference_mode()
    def score(self, states: Sequence[State]) -> list[float]:
        """V in (0, 1) for each state, in order. Raises UserError for a state longer than the trunk's context.

        States along one path are read from a single pass over the longest of them.
        """
        self.eval()
        rows = [state_ids(self.tokenizer, state) for state in states]
        values = [0.0] * len(rows)
        along = _paths(rows)
        for batch in length_batches([len(rows[path[0]]) for path in along]):
            chosen = [along[i] for i in batch]
            ends = [[len(rows[i]) - 1 for i in path] for path in chosen]
            hidden = read_hidden(self.trunk, [rows[path[0]] for path in chosen], ends, self.head.layers)
            read = [i for path in chosen for i in path]
            features = [path_features(states[i].question, states[i].steps) for i in read]
            logits = self.head(hidden, torch.tensor(features, device=hidden.device))
            for i, value in zip(read, logits.sigmoid().tolist(), strict=True):
                values[i] = value
        self.tokens_encoded += sum(len(rows[path[0]]) for path in along)
        return values

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the trunk and tokenizer to `trunk/`, then the head; a folder without the head is unfinished."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        beside, final = folder / f".{TRUNK_FOLDER}.part", folder / TRUNK_FOLDER
        for stale in (beside, final):
            shutil.rmtree(stale, ignore_errors=True)
        self.trunk.save_pretrained(beside)
        self.tokenizer.save_pretrained(beside)
        beside.rename(final)
        self.head.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: str = "float32", device: str = "cpu") -> ValueModel:
        """Read a saved value model. Raises UserError if it is incomplete or its parts do not fit."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(directory)
        head = ValueHead.from_pretrained(folder)
        if head.config.trunk != "separate" or not (folder / TRUNK_FOLDER).is_dir():
            raise UserError(f"{folder} holds a head for the policy's own trunk, not a separate value model")
        try:
            trunk: Any = AutoModelForCausalLM.from_pretrained(
                folder / TRUNK_FOLDER, dtype=getattr(torch, dtype), local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / TRUNK_FOLDER, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the trunk in {folder / TRUNK_FOLDER} cannot be read: {reason}") from None
        return cls(trunk.to(device), tokenizer, head.to(device)).eval()


def _paths(rows: list[list[int]]) -> list[list[int]]:
    """The indices of all rows, in lists: first a row that begins no other, then rows that it begins with."""
    found: list[list[int]] = []
    # In this order the rows that begin with a row follow it directly.
    for i in sorted(range(len(rows)), key=lambda i: rows[i], reverse=True):
        if found and rows[found[-1][0]][: len(rows[i])] == rows[i]:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def state_ids(tokenizer: Any, state: State) -> list[int]:
    """The token ids of a state: its prompt, then each step's own ids, or those of its text if it has none."""
    return encode_prompt(tokenizer, state.question) + [i for step in state.steps for i in step_ids(tokenizer, step)]


def step_ids(tokenizer: Any, step: Step) -> Sequence[int]:
    """A step's own token ids, or those of its text if it has none."""
    return step.token_ids or encode_written(tokenizer, step.text)


def length_batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `budget` padded tokens (or one row)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def check_layers(trunk: Any, layers: Iterable[int]) -> None:
    """Raise UserError for a layer the trunk does not have."""
    count = trunk.config.get_text_config().num_hidden_layers
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"value.layers has layer {layer}; the model has layers 0 to {count - 1} (or -{count} to -1)"
            )


def read_hidden(
    trunk: Any, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> Tensor:
    """Hidden states [P, L, D] at `positions` of each row, rows in order, in the trunk's dtype.

    Rows are padded on the right and attention is causal, so no position that is read sees padding. Layers are numbered
    as in `ValueHeadConfig`. Raises UserError for a row longer than the context.
    """
    _check_lengths(trunk, rows)
    longest = max(map(len, rows))
    # Any token id serves as padding.
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=trunk.device)
    row_of = torch.tensor([i for i, ends in enumerate(positions) for _ in ends], device=trunk.device)
    end_of = torch.tensor([end for ends in positions for end in ends], device=trunk.device)
    return _forward(trunk, layers, row_of, end_of, input_ids=ids)[0]


def packs(rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[list[int]]:
    """The rows that `read_packed` makes one sequence of, by index: up to PACKED in a row with the same prompt."""
    groups: list[list[int]] = []
    for i, row in enumerate(rows):
        first = groups[-1][0] if groups and len(groups[-1]) < PACKED else None
        if first is not None and rows[first][: prompts[first]] == row[: prompts[i]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _check_lengths(trunk: Any, rows: Sequence[Sequence[int]]) -> None:
    context, longest = trunk.config.get_text_config().max_position_embeddings, max(map(len, rows))
    if longest > context:
        raise UserError(f"a solution has {longest} tokens with its question; the value model's context is {context}")


def _forward(
    trunk: Any, layers: Sequence[int], row_of: Tensor, end_of: Tensor, **inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states [P, L, D] at (row_of, end_of), and the last ones [B, T, D] everywhere."""
    read: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def keep(module: Any, args: Any, output: Any) -> None:
            read[layer] = (output[0] if isinstance(output, tuple) else output)[row_of, end_of]

        return keep

    base = trunk.base_model
    hooks = [base.layers[layer].register_forward_hook(reader(layer)) for layer in layers if layer != -1]
    try:
        last: Tensor = base(**inputs, use_cache=False).last_hidden_state
        read[-1] = last[row_of, end_of]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([read[layer] for layer in layers], dim=1), last


def read_packed(
    trunk: Any,
    rows: Sequence[Sequence[int]],
    prompts: Sequence[int],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """As `read_hidden`, with a prompt that following rows share encoded once: hidden states [P, L, D], and the last
    ones [N, D] of all tokens of the rows' solutions, each preceded by that of its prompt's last token.

    prompts: tokens of each row's prompt. The rows of a pack (see `packs`) become one sequence, prompt, solution,
    solution, ...; a solution sees the prompt and itself, at the positions it would have alone. Forward and backward
    passes over 8 solutions of 75 tokens after questions of 66 to 90 take 1.4 to 1.6 times less processor time so
    (6 layers of the shape of SmolLM2-135M, one thread, AVX-512).
    """
    _check_lengths(trunk, rows)
    groups = packs(rows, prompts)
    sequences, places, parts = [], [], []  # ids; position of each token; which solution it is of (0: the prompt)
    starts = [0] * len(rows)  # of a row's solution in its sequence
    for members in groups:
        size = prompts[members[0]]
        ids, place, part = list(rows[members[0]][:size]), list(range(size)), [0] * size
        for number, i in enumerate(members, start=1):
            starts[i] = len(ids)
            solution = rows[i][size:]
            ids += solution
            place += range(size, size + len(solution))
            part += [number] * len(solution)
        sequences.append(ids)
        places.append(place)
        parts.append(part)
    longest, device = max(map(len, sequences)), trunk.device

    def padded(lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in lists], device=device)

    of = padded(parts, -1)
    related = (of[:, :, None] == of[:, None]) | (of[:, None] == 0)
    # Padding sees padding, so that no token sees nothing at all.
    mask = (related & torch.ones(longest, longest, dtype=torch.bool, device=device).tril())[:, None]
    sequence_of = [number for number, members in enumerate(groups) for _ in members]

    def at(i: int, position: int) -> int:
        """Where a position of a row is in its sequence."""
        return position if position < prompts[i] else starts[i] + position - prompts[i]

    row_of = torch.tensor([sequence_of[i] for i, ends in enumerate(positions) for _ in ends], device=device)
    end_of = torch.tensor([at(i, end) for i, ends in enumerate(positions) for end in ends], device=device)
    inputs = {"input_ids": padded(sequences, 0), "position_ids": padded(places, 0), "attention_mask": mask}
    read, last = _forward(trunk, layers, row_of, end_of, **inputs)
    written = [
        (sequence_of[i], at(i, position)) for i, row in enumerate(rows) for position in range(prompts[i] - 1, len(row))
    ]
    sequence, position = torch.tensor(written, device=device).unbind(1)
    return read, last[sequence, position]
