"""Training learns what the steps say, resumes to the same bytes, and refuses data that cannot teach."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qstar.config import ValueConfig
from qstar.errors import UserError
from qstar.value.data import Dataset, trace_weights
from qstar.value.features import PATH_FEATURES
from qstar.value.fit import Objective
from qstar.value.head import ValueHead
from qstar.value.model import ValueModel, read_packed
from qstar.value.train import _Work, language_loss, train_head, train_separate, train_value
from tests import tiny
from tests.value.data import BAD, GOOD, trace, traces

TOKENIZER = tiny.tokenizer()
TRAIN = traces(TOKENIZER, 30, 6, seed=0)
DEV = traces(TOKENIZER, 15, 6, seed=1, name="d")
CONFIG = ValueConfig(layers=(0, -1), hidden_size=32, epochs=3.0, batch_size=16, learning_rate=5e-3)


def run(folder: Path, trunk: str, train: Any = train_value, **changes: Any) -> Any:
    arguments = {"dev_traces": DEV, "seed": 0, "device": "cpu", "directory": folder, "base_revision": "r1", **changes}
    config = dataclasses.replace(CONFIG, trunk=trunk)  # type: ignore[arg-type]
    return train(tiny.model(), TOKENIZER, arguments.pop("train_traces", TRAIN), config, **arguments)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_hidden_states_are_computed_once_for_several_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(tmp_path / "alone", "frozen")
    assert run(tmp_path / "first", "frozen", hidden=tmp_path / "hidden") == alone
    monkeypatch.setattr("qstar.value.train.read_hidden", lambda *_: pytest.fail("read again"))
    assert run(tmp_path / "second", "frozen", hidden=tmp_path / "hidden") == alone
    assert digests(tmp_path / "second") == digests(tmp_path / "alone")


@pytest.mark.parametrize(("trunk", "train"), [("frozen", train_head), ("separate", train_separate)])
def test_a_step_that_decides_the_outcome_is_learned_on_other_problems(tmp_path: Path, trunk: str, train: Any) -> None:
    model, figures = run(tmp_path, trunk, train)
    assert figures["auc_within_first"] > 0.95
    assert figures["auc_within_last"] > 0.9
    assert figures["best_of_n"] > figures["majority"]
    if trunk == "separate":
        probe = trace(TOKENIZER, "new", [GOOD], True), trace(TOKENIZER, "new", [BAD], False)
        good, bad = model.score([t.state(1) for t in probe])
        assert good > 0.7 > 0.3 > bad
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["calibrated"]["traces"] == len(DEV)
    assert [row["epoch"] for row in report["history"]] == [1, 2, 3]
    assert (tmp_path / "reliability.png").is_file()
    assert not (tmp_path / "state").exists()


def test_the_saved_value_is_the_returned_one(tmp_path: Path) -> None:
    head, _ = run(tmp_path / "f", "frozen", train_head)
    hidden, paths = torch.randn(4, 2, 32), torch.rand(4, PATH_FEATURES)
    assert torch.equal(ValueHead.from_pretrained(tmp_path / "f")(hidden, paths), head(hidden, paths))
    value, _ = run(tmp_path / "s", "separate", train_separate)
    some = [t.state(1) for t in DEV[:5]]
    assert ValueModel.from_pretrained(tmp_path / "s").score(some) == pytest.approx(value.score(some), abs=1e-6)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("trunk", ["frozen", "separate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stopped_training_ends_with_the_same_bytes(tmp_path: Path, trunk: str, dtype: torch.dtype) -> None:
    def train(folder: Path, on_epoch: Any = None) -> Any:
        config = dataclasses.replace(CONFIG, trunk=trunk, epochs=2.5)  # type: ignore[arg-type]
        arguments: Any = {"dev_traces": DEV, "seed": 4, "device": "cpu", "directory": folder, "base_revision": "r1"}
        return train_value(tiny.model().to(dtype), TOKENIZER, TRAIN, config, **arguments, on_epoch=on_epoch)

    def kill(row: dict[str, Any]) -> None:
        raise KilledError

    expected = train(tmp_path / "whole")
    epochs: list[int] = []
    for _ in range(2):
        torch.manual_seed(99)  # the global random state must not matter
        with pytest.raises(KilledError):
            train(tmp_path / "stopped", kill)
    (tmp_path / "stopped" / "state" / ".state.safetensors.part").write_bytes(b"torn")
    assert train(tmp_path / "stopped", lambda row: epochs.append(row["epoch"])) == expected
    assert epochs == [3]
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    # Asking once more does no work and changes nothing.
    assert train(tmp_path / "stopped", kill) == expected


def test_a_damaged_state_is_started_again(tmp_path: Path) -> None:
    epochs: list[int] = []

    def kill(row: dict[str, Any]) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, "frozen", on_epoch=kill)
    state = tmp_path / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    run(tmp_path, "frozen", on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2, 3]


def test_other_inputs_do_not_continue_an_old_state(tmp_path: Path) -> None:
    epochs: list[int] = []

    def kill(row: dict[str, Any]) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, "frozen", on_epoch=kill)
    run(tmp_path, "frozen", seed=1, on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2, 3]


def test_the_policy_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = dataclasses.replace(CONFIG, trunk="separate", epochs=1.0)
    train_value(
        model, TOKENIZER, TRAIN, config, dev_traces=DEV, seed=0, device="cpu", directory=tmp_path, base_revision="r"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    trained = ValueModel.from_pretrained(tmp_path).trunk.state_dict()
    assert not all(torch.equal(before[name], trained[name]) for name in before)


def test_the_loss_by_hand() -> None:
    # Problem a: right logit 2, wrong logit 1, at depth 1; the wrong trace has a second step with logit 0.
    data = Dataset.of([trace(TOKENIZER, "a", [GOOD], True), trace(TOKENIZER, "a", [BAD, BAD], False)], TOKENIZER)
    loss = Objective(data, [[0, 1]], "cpu", 0.3)([0, 1], torch.tensor([2.0, 1.0, 0.0]))
    cross_entropy = (np.log1p(np.exp(-2)) + np.log1p(np.exp(1)) + np.log(2)) / 3
    assert float(loss) == pytest.approx(cross_entropy + 0.3 * np.log1p(np.exp(-1)), rel=1e-6)


def test_the_loss_of_a_batch_is_the_sum_over_its_parts() -> None:
    data = Dataset.of(TRAIN[:18], TOKENIZER)
    batch = [list(range(6)), list(range(6, 12)), list(range(12, 18))]
    logits = torch.randn(int(data.first[-1]), generator=torch.Generator().manual_seed(0))
    objective = Objective(data, batch, "cpu", 0.3)
    whole = objective(list(range(18)), logits)
    parts = [objective(rows, logits[data.first[rows[0]] : data.first[rows[-1] + 1]]) for rows in batch]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_balance_gives_right_and_wrong_traces_of_a_problem_the_same_total_weight() -> None:
    problem, label = np.array([0, 0, 0, 0, 1, 1]), np.array([1.0, 0, 0, 0, 1, 1])
    assert trace_weights(problem, label, 1.0) == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3, 1, 1])
    assert trace_weights(problem, label, 0.5) == pytest.approx([1.5, 5 / 6, 5 / 6, 5 / 6, 1, 1])
    assert trace_weights(problem, label, 0.0) == pytest.approx([1] * 6)


def test_step_ends_are_the_last_tokens_of_the_steps() -> None:
    made = trace(TOKENIZER, "a", [GOOD, "#### 6"], True)
    data = Dataset.of([made], TOKENIZER)
    for step, end in zip(made.steps, data.ends[0], strict=True):
        assert data.rows[0][end + 1 - len(step.token_ids) : end + 1] == list(step.token_ids)
    assert data.ends[0][-1] == len(data.rows[0]) - 1


def test_batches_hold_whole_problems_and_every_row_once() -> None:
    data = Dataset.of(TRAIN, TOKENIZER)
    batches = list(data.batches(16, seed=0, epoch=0))
    assert sorted(row for batch in batches for problem in batch for row in problem) == list(range(len(data)))
    assert all(len({int(data.problem[row]) for row in rows}) == 1 for batch in batches for rows in batch)
    assert batches == list(data.batches(16, seed=0, epoch=0))
    assert batches != list(data.batches(16, seed=0, epoch=1))


def test_ungraded_and_empty_traces_are_left_out_and_cut_ones_count_as_wrong() -> None:
    good = TRAIN[0]
    failed = dataclasses.replace(good, status="error")
    empty = dataclasses.replace(good, steps=())
    cut = dataclasses.replace(good, finish="length", status="wrong", answer=None)
    data = Dataset.of([failed, good, empty, cut], TOKENIZER)
    assert data.traces == [good, cut]
    assert data.label.tolist() == [float(good.status == "correct"), 0.0]


def test_data_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    wrong = [t for t in TRAIN if t.status == "wrong"]
    with pytest.raises(UserError, match=r"all \d+ training traces are wrong"):
        run(tmp_path, "frozen", train_traces=wrong)
    with pytest.raises(UserError, match="no graded traces"):
        run(tmp_path, "frozen", train_traces=[])
    with pytest.raises(UserError, match="no graded dev traces"):
        run(tmp_path, "frozen", dev_traces=[])
    with pytest.raises(UserError, match="in both the training and the dev traces, such as t0"):
        run(tmp_path, "frozen", dev_traces=TRAIN[:6])


def test_a_dev_split_with_one_outcome_still_gives_a_report(tmp_path: Path) -> None:
    figures = run(tmp_path, "frozen", dev_traces=[t for t in DEV if t.status == "wrong"])
    assert figures["auc"] is None
    assert figures["oracle"] == 0.0


def trained(folder: Path, **changes: Any) -> Any:
    config = dataclasses.replace(CONFIG, epochs=1.0, **changes)
    return train_value(
        tiny.model(),
        TOKENIZER,
        TRAIN,
        config,
        dev_traces=DEV,
        seed=0,
        device="cpu",
        directory=folder,
        base_revision="r",
    )


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower value\.learning_rate"):
        trained(tmp_path, learning_rate=1e30)


@pytest.mark.parametrize("target", ["monte_carlo", "hard", "td", "tree_mean", "tree_max"])
def test_every_target_is_trained_on(tmp_path: Path, target: str) -> None:
    assert trained(tmp_path, target=target)["auc_within_first"] > 0.9
    assert not (tmp_path / "state").exists()


def test_td_with_lambda_one_is_the_outcome_and_zero_the_next_value_of_the_other_half(tmp_path: Path) -> None:
    def targets(decay: float) -> Dataset:
        config = dataclasses.replace(CONFIG, epochs=1.0, target="td", td_lambda=decay)
        work = _Work(tiny.model(), TOKENIZER, TRAIN, DEV, config, 0, tmp_path / str(decay), "r", ())
        work.bootstrap(tiny.model(), TOKENIZER, "cpu", None)
        return work.train

    outcome, whole, none = Dataset.of(TRAIN, TOKENIZER), targets(1.0), targets(0.0)
    assert whole.target.tolist() == outcome.target.tolist()
    assert none.target[none.first[1:] - 1].tolist() == outcome.label.tolist()
    head = ValueHead.from_pretrained(tmp_path / "0.0" / "state" / "first" / "0")
    first = Dataset.of([t for t, p in zip(TRAIN, none.problem, strict=True) if p == 0], TOKENIZER)
    value = ValueModel(tiny.model(), TOKENIZER, head).score([first.traces[0].state(2)])
    assert none.target[0] == pytest.approx(value[0], abs=1e-5)


def test_a_joint_value_goes_on_learning_to_write(tmp_path: Path) -> None:
    right = Dataset.of([t for t in TRAIN if t.status == "correct"], TOKENIZER)

    def loss(trunk: Any) -> float:
        rows = range(len(right))
        _, last = read_packed(trunk, right.rows, right.prompts, right.ends, (-1,))
        return float(language_loss(trunk, last, right, rows).detach())

    trained(tmp_path / "s", trunk="separate")
    trained(tmp_path / "j", trunk="joint", joint_weight=1.0)
    separate, joint = (ValueModel.from_pretrained(tmp_path / name) for name in "sj")
    assert loss(joint.trunk) < loss(tiny.model())
    assert loss(joint.trunk) < loss(separate.trunk)


def test_the_language_loss_is_that_of_transformers_on_the_solutions_of_right_traces() -> None:
    model, data = tiny.model(), Dataset.of(TRAIN[:6], TOKENIZER)
    _, last = read_packed(model, data.rows, data.prompts, data.ends, (-1,))
    expected = 0.0
    for row, ids in enumerate(data.rows):
        if data.label[row]:
            labels = torch.tensor([[-100] * data.prompts[row] + ids[data.prompts[row] :]])
            count = len(ids) - data.prompts[row]
            expected += float(model(input_ids=torch.tensor([ids]), labels=labels).loss.detach()) * count
    assert 0 < data.label.sum() < len(data)
    assert float(language_loss(model, last, data, range(6)).detach()) == pytest.approx(expected, rel=1e-4)


def test_adapters_are_trained_alone_and_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    figures = trained(tmp_path, trunk="lora", lora_rank=4)
    assert figures["auc_within_first"] > 0.9
    before, after = tiny.model().state_dict(), ValueModel.from_pretrained(tmp_path).trunk.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert set(after) == set(before)
    assert ValueHead.from_pretrained(tmp_path).config.trunk == "separate"


def test_steps_without_weight_count_neither_in_the_loss_nor_in_the_ranking() -> None:
    late = dataclasses.replace(trace(TOKENIZER, "a", [GOOD, GOOD], True), start=2)
    data = Dataset.of([late, trace(TOKENIZER, "a", [BAD], False)], TOKENIZER)
    loss = Objective(data, [[0, 1]], "cpu", 1.0)([0, 1], torch.tensor([9.0, 2.0, 1.0]))
    assert float(loss) == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2, rel=1e-6)


@pytest.mark.parametrize(("part", "count"), [("all", 11), ("logprobs", 3), ("checks", 8), ("none", 0)])
def test_a_head_reads_the_part_of_the_path_that_it_is_told(tmp_path: Path, part: str, count: int) -> None:
    trained(tmp_path, features=part)
    head = ValueHead.from_pretrained(tmp_path)
    assert len(head.path_center) == count
    fresh = ValueHead(head.config)  # its inputs are not scaled, so no logit is cut
    hidden, paths = torch.randn(1, 2, 32), torch.zeros(1, PATH_FEATURES)
    logprob, check = paths.clone(), paths.clone()
    logprob[0, 1], check[0, 5] = -9.0, 4.0
    assert torch.equal(fresh(hidden, logprob), fresh(hidden, paths)) == (part in ("checks", "none"))
    assert torch.equal(fresh(hidden, check), fresh(hidden, paths)) == (part in ("logprobs", "none"))
