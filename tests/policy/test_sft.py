"""Fine-tuning: what carries loss, the order of examples, resuming, dropped examples and layers."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qstar.policy.trainer
from qstar.config import ScratchConfig, SftConfig
from qstar.errors import UserError
from qstar.policy.frequency import frequency_weights
from qstar.policy.hub import load_causal_lm, load_tokenizer
from qstar.policy.sft import REPORT, SftExample, SftReport, build_base, drop_layers, schedule, sft
from tests import tiny

TOKENIZER = tiny.tokenizer()
CONFIG = SftConfig(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_steps=2)


def example(n: int, weight: float = 1.0) -> SftExample:
    steps = tuple(f"She has {n} + {k} = {n + k}." for k in range(1 + n % 3))
    return SftExample(f"Ann has {n} pears. How many?", steps, str(n), weight)


EXAMPLES = [example(n) for n in range(12)]


def train(
    directory: Path, examples: Sequence[SftExample] = EXAMPLES, config: SftConfig = CONFIG, **changes: Any
) -> SftReport:
    options = {"model": tiny.model(), "seed": 0, **changes}
    return sft(options.pop("model"), TOKENIZER, examples, config, directory=directory, device="cpu", **options)


def weights(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def tokens(item: SftExample) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of what is learned."""
    parts = [*(step + "\n" for step in item.steps), f"#### {item.answer}"]
    solution = [i for part in parts for i in TOKENIZER.encode(part)]
    return TOKENIZER.encode(f"Question: {item.question}\nAnswer:\n"), [*solution, TOKENIZER.eos_token_id]


def answer_losses(model: Any, item: SftExample) -> torch.Tensor:
    """-log p of each token after the prompt, by a plain forward pass of one sequence."""
    prompt, solution = tokens(item)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + solution])).logits[0]
    return torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(solution), reduction="none")


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """kill_at(n) ends the next training after n optimizer steps; kill_at(None) lets it run."""
    limit: list[int | None] = [None]
    original = qstar.policy.trainer.Progress.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if limit[0] is not None and state.global_step > limit[0]:
            raise KilledError

    monkeypatch.setattr(qstar.policy.trainer.Progress, "on_step_end", on_step_end)

    def set_limit(steps: int | None) -> None:
        limit[0] = steps

    return set_limit


# The loss


def test_the_loss_is_the_weighted_mean_over_answer_tokens_alone(tmp_path: Path) -> None:
    items = [example(n, (1.0, 0.0, 2.5, 0.3)[n % 4]) for n in range(20)]
    # A rate too small to change a float32 weight, so that all five logged steps see the same model.
    report = train(tmp_path / "m", items, dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-30, weight_decay=0.0))
    losses = [answer_losses(tiny.model(), item) for item in items]
    order = schedule([sum(map(len, tokens(item))) for item in items], 1, 4, 0)
    expected = []
    for at in range(0, 20, 4):
        batch = order[at : at + 4]
        total = sum(items[i].weight * float(losses[i].sum()) for i in batch)
        expected.append(total / sum(len(losses[i]) for i in batch))
    assert report.losses == ((5, pytest.approx(sum(expected) / 5, rel=1e-4)),)
    assert report.target_tokens == sum(map(len, losses))
    assert report.tokens == sum(len(part) for item in items for part in tokens(item))


def test_steps_have_weights_of_their_own(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    item = dataclasses.replace(example(4), weight=2.0, step_weights=(0.5, 3.0, 0.0))
    report = train(tmp_path / "m", [item] * 20, config)
    losses = answer_losses(tiny.model(), item)
    first, second = (len(TOKENIZER.encode(step + "\n")) for step in item.steps)
    parts = torch.split(losses, [first, second, len(losses) - first - second])
    expected = 2 * sum(w * float(part.sum()) for w, part in zip((0.5, 3.0, 0.0), parts, strict=True)) / len(losses)
    assert report.losses == ((5, pytest.approx(expected, rel=1e-4)),)


def test_every_step_and_the_answer_need_a_weight(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        train(tmp_path / "m", [dataclasses.replace(example(4), step_weights=(1.0, 1.0))])


def test_rare_tokens_count_more_when_asked_to(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    item = example(5)
    report = train(tmp_path / "m", [item] * 20, config, frequency_aware=True)
    _, solution = tokens(item)
    weights = frequency_weights(solution)
    losses = answer_losses(tiny.model(), item)
    expected = sum(weights[i] * float(loss) for i, loss in zip(solution, losses, strict=True)) / len(solution)
    assert report.losses == ((5, pytest.approx(expected, rel=1e-4)),)
    assert expected != pytest.approx(float(losses.mean()), rel=1e-3)


def test_the_question_carries_loss_when_asked_to(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-30, weight_decay=0.0, question_loss=True)
    items = [example(3)] * 20  # equal batches
    report = train(tmp_path / "m", items, config)
    prompt, solution = tokens(items[0])
    ids = torch.tensor(prompt + solution)
    with torch.no_grad():
        logits = tiny.model()(ids[None]).logits[0]
    expected = float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))
    assert report.losses == ((5, pytest.approx(expected, rel=1e-4)),)
    assert report.target_tokens == 20 * (len(ids) - 1)


def test_weight_zero_teaches_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, weight_decay=0.0)
    train(tmp_path / "m", [dataclasses.replace(item, weight=0.0) for item in EXAMPLES], config)
    trained = load_causal_lm(tmp_path / "m", dtype="float32", device="cpu").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in tiny.model().state_dict().items())


def test_training_lowers_the_loss_of_the_answers(tmp_path: Path) -> None:
    report = train(tmp_path / "m", config=dataclasses.replace(CONFIG, epochs=10))
    trained = load_causal_lm(tmp_path / "m", dtype="float32", device="cpu")
    before, after = (float(answer_losses(m, EXAMPLES[5]).mean()) for m in (tiny.model(), trained))
    assert after < before - 1
    assert report.losses[-1][1] < report.losses[0][1]


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_no_weight_is_refused(tmp_path: Path, weight: float) -> None:
    with pytest.raises(UserError, match="weights must be finite and 0 or more"):
        train(tmp_path / "m", [example(1), example(2, weight)])
    assert not (tmp_path / "m").exists()


# The folder


def test_the_folder_is_a_model_with_its_report(tmp_path: Path) -> None:
    model = tiny.model()
    report = train(tmp_path / "m", model=model)
    assert (report.examples, report.dropped, report.steps) == (12, 0, 6)
    assert report.tokens_per_second > 0
    loaded = load_causal_lm(tmp_path / "m", dtype="float32", device="cpu")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_tokenizer(tmp_path / "m").encode("7 pears\n") == TOKENIZER.encode("7 pears\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]  # no checkpoints are left
    # The model answers as usual again, with and without a cache.
    assert not model.training
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 320)


def test_a_finished_folder_is_not_trained_again(tmp_path: Path) -> None:
    report = train(tmp_path / "m")
    before = weights(tmp_path / "m")
    model = tiny.model(seed=9)
    assert train(tmp_path / "m", model=model) == report
    assert weights(tmp_path / "m") == before
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), tiny.model(seed=9).parameters(), strict=True)
    )  # untouched


@pytest.mark.parametrize(
    ("examples", "config", "seed"),
    [
        (EXAMPLES[:-1], CONFIG, 0),
        ([*EXAMPLES[:-1], example(11, 0.5)], CONFIG, 0),
        (EXAMPLES, dataclasses.replace(CONFIG, learning_rate=1e-3), 0),
        (EXAMPLES, CONFIG, 1),
    ],
)
def test_other_data_or_settings_are_refused(
    tmp_path: Path, examples: list[SftExample], config: SftConfig, seed: int, kill_at: Any
) -> None:
    kill_at(3)
    with pytest.raises(KilledError):
        train(tmp_path / "m")
    with pytest.raises(UserError, match=r"other data.* settings.*; delete it"):
        train(tmp_path / "m", examples, config, seed=seed)
    kill_at(None)
    train(tmp_path / "m")
    with pytest.raises(UserError, match=r"other data.* settings.*; delete it"):
        train(tmp_path / "m", examples, config, seed=seed)


def test_how_often_to_save_is_not_part_of_the_settings(tmp_path: Path) -> None:
    report = train(tmp_path / "m")
    assert train(tmp_path / "m", config=dataclasses.replace(CONFIG, checkpoint_steps=50)) == report


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"losses": [1]}', '{"losses": []}'])
def test_a_damaged_report_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / REPORT).write_text(text)
    with pytest.raises(UserError, match="is damaged; delete") as caught:
        train(tmp_path / "m")
    assert len(str(caught.value).splitlines()) == 1


# Resuming


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_training_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path, dtype: Any, kill_at: Any) -> None:
    config = dataclasses.replace(CONFIG, dtype=dtype)
    whole = train(tmp_path / "whole", config=config)
    for limit in (1, 3, 4):  # before the first checkpoint, between two, at one
        kill_at(limit)
        with pytest.raises(KilledError):
            train(tmp_path / "m", config=config)
        assert not (tmp_path / "m").exists()
    kill_at(None)
    resumed = train(tmp_path / "m", config=config)
    assert weights(tmp_path / "m") == weights(tmp_path / "whole")
    same = ("examples", "dropped", "steps", "tokens", "target_tokens", "fingerprint")
    assert [getattr(resumed, name) for name in same] == [getattr(whole, name) for name in same]


def test_a_checkpoint_killed_while_it_was_written_is_passed_over(tmp_path: Path, kill_at: Any) -> None:
    train(tmp_path / "whole")
    kill_at(4)
    with pytest.raises(KilledError):
        train(tmp_path / "m")
    checkpoints = tmp_path / "m-checkpoints"
    (last,) = checkpoints.glob("checkpoint-*")
    for name, text in (("checkpoint-6", '{"global_step": 6, "epo'), ("checkpoint-8", None), ("checkpoint-10", "[]")):
        shutil.copytree(last, checkpoints / name)
        (checkpoints / name / "trainer_state.json").unlink()
        if text is not None:
            (checkpoints / name / "trainer_state.json").write_text(text)
    kill_at(None)
    train(tmp_path / "m")
    assert weights(tmp_path / "m") == weights(tmp_path / "whole")


def test_bfloat16_training_keeps_updates_below_its_precision(tmp_path: Path) -> None:
    # At this rate no single update changes a bfloat16 weight near 0.2; their sum does.
    config = dataclasses.replace(CONFIG, epochs=20, learning_rate=3e-5, warmup=0.0, weight_decay=0.0, dtype="bfloat16")
    train(tmp_path / "b", config=config)
    train(tmp_path / "f", config=dataclasses.replace(config, dtype="float32"))
    low, full, start = (
        m.state_dict()["model.layers.0.mlp.up_proj.weight"].float()
        for m in (
            load_causal_lm(tmp_path / "b", dtype="bfloat16", device="cpu"),
            load_causal_lm(tmp_path / "f", dtype="float32", device="cpu"),
            tiny.model(),
        )
    )
    large = start.abs() > 0.15
    moved = (low != start.bfloat16().float())[large].float().mean()
    assert 3e-5 < 2**-9 * 0.15 * 0.5
    assert moved > 0.1
    assert float((low - full).abs().max()) < 2**-8 * float(full.abs().max()) + 1e-4


# The order of examples


@given(st.lists(st.integers(1, 300), min_size=1, max_size=400), st.integers(1, 3), st.integers(1, 8), st.integers())
def test_every_epoch_trains_every_example_once(lengths: list[int], epochs: int, batch: int, seed: int) -> None:
    order = schedule(lengths, epochs, batch, seed)
    assert Counter(order) == dict.fromkeys(range(len(lengths)), epochs)
    assert order == schedule(lengths, epochs, batch, seed)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=400), st.floats(0.01, 3), st.integers(1, 8))
def test_part_of_an_epoch(lengths: list[int], epochs: float, batch: int) -> None:
    order = schedule(lengths, epochs, batch, 0)
    assert len(order) == max(1, round(epochs * len(lengths)))
    counts = Counter(order)
    assert max(counts.values()) - min(counts[i] for i in range(len(lengths))) <= 1


def test_batches_hold_similar_lengths_in_an_order_that_ignores_length() -> None:
    lengths = [(37 * n) % 401 for n in range(1600)]
    order = schedule(lengths, 1, 8, 0)
    batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, len(order), 8)]
    spread = sorted(max(b) - min(b) for b in batches)
    assert spread[-1] < 40  # 401 without buckets
    assert sum(max(b) * 8 for b in batches) < 1.05 * sum(lengths)  # little padding
    half = len(batches) // 2
    means = [sum(map(sum, part)) / (8 * half) for part in (batches[:half], batches[half:])]
    assert abs(means[0] - means[1]) < 60
    assert schedule(lengths, 1, 8, 1) != order


def test_the_partial_batch_comes_last() -> None:
    lengths = list(range(1, 12))
    order = schedule(lengths, 1, 4, 3)
    batches = [sorted(order[at : at + 4]) for at in range(0, 11, 4)]
    assert sorted(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert batches[-1] == [8, 9, 10]


# Examples that do not fit


def test_examples_beyond_the_context_are_dropped_and_counted(tmp_path: Path) -> None:
    long = SftExample("How many?", ("So it is one and two and three. " * 40,), "3")
    report = train(tmp_path / "m", [*EXAMPLES, long, long])
    assert (report.examples, report.dropped) == (12, 2)
    train(tmp_path / "without")
    assert weights(tmp_path / "m") == weights(tmp_path / "without")


def test_the_limit_is_inclusive(tmp_path: Path) -> None:
    size = sum(map(len, tokens(EXAMPLES[2])))
    with pytest.raises(UserError, match=f"no training example fits into {size - 1} tokens"):
        train(tmp_path / "m", EXAMPLES[2:3], max_tokens=size - 1)
    assert train(tmp_path / "m", EXAMPLES[2:3], max_tokens=size).tokens == 2 * size


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training example fits"):
        train(tmp_path / "m", [])


# The base of a training


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("keep", [2, 3, 4])
def test_dropped_layers_leave_a_model_that_decodes_with_its_cache(kind: str, keep: int, tmp_path: Path) -> None:
    donor = tiny.model(kind)
    config = type(donor.config)(**{**donor.config.to_dict(), "num_hidden_layers": 5, "layer_types": None})
    torch.manual_seed(0)
    whole = type(donor)(config).eval()
    kept_norms = {2: (0, 4), 3: (0, 2, 4), 4: (0, 1, 3, 4)}[keep]
    originals = [whole.base_model.layers[i].mlp.up_proj.weight.clone() for i in kept_norms]
    model = drop_layers(whole, keep)
    assert model is whole
    assert [torch.equal(a.mlp.up_proj.weight, b) for a, b in zip(model.base_model.layers, originals, strict=True)] == [
        True
    ] * keep
    prompt = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    plain = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(model.generate(prompt, use_cache=True, **options), plain)
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path, dtype="float32", device="cpu")
    assert loaded.config.num_hidden_layers == keep
    assert torch.equal(loaded.generate(prompt, use_cache=True, **options), plain)


@pytest.mark.parametrize("keep", [-1, 0, 1, 3])
def test_layers_that_cannot_be_kept(keep: int) -> None:
    with pytest.raises(UserError, match=f"cannot keep {keep} of 2 layers; choose from 2 to 2"):
        drop_layers(tiny.model(), keep)


def test_a_base_from_scratch_and_from_a_folder(tmp_path: Path) -> None:
    shape = ScratchConfig(
        hidden_size=24, layers=2, heads=2, kv_heads=1, intermediate_size=32, vocab_size=300, max_positions=64
    )
    options: dict[str, Any] = {"texts": tiny.TEXT, "dtype": "bfloat16", "device": "cpu", "seed": 4}
    model, tokenizer = build_base("scratch", shape, **options)
    assert model.dtype == torch.bfloat16
    again, _ = build_base("scratch", shape, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, other = build_base(str(tmp_path), shape, **{**options, "texts": ()})
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert other.encode("12 pears\n") == tokenizer.encode("12 pears\n")


@pytest.mark.slow
def test_a_compiled_training_gives_the_same_model_within_rounding(tmp_path: Path) -> None:
    model = tiny.model()
    train(tmp_path / "c", config=dataclasses.replace(CONFIG, compile=True), model=model)
    train(tmp_path / "m")
    compiled, plain = (load_causal_lm(tmp_path / n, dtype="float32", device="cpu").state_dict() for n in ("c", "m"))
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-3) for name in plain)
    assert not any("forward" in vars(layer) for layer in model.base_model.layers)
    assert model.config._attn_implementation == "sdpa"
