"""Every format goes through the trainer that reads it: one optimizer step on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from qstar.config import ValueConfig
from qstar.distill.export import export
from qstar.distill.formats import read_stepwise
from qstar.distill.select import select_traces
from qstar.errors import UserError
from qstar.policy.prompt import render_prompt
from qstar.trace import Trace
from qstar.value.train import train_value
from tests import tiny
from tests.distill.data import BUY, END, NO_TEST, SUM, WORDY, provenance, right, trace, wrong

QUESTIONS = [f"Ann has {n} apples. How many does she have?" for n in range(4)]
TRACES = [t for q in QUESTIONS for t in (right(question=q), trace(WORDY, SUM, END, question=q), wrong(question=q))]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def exported(tmp_path: Path, format: str, file_type: Any = "jsonl", trees: Any = ()) -> Any:
    export(
        select_traces(TRACES, per_problem=2, require_equations=True),
        format,
        file_type,
        tmp_path / "out",
        provenance=provenance(),
        test_index=NO_TEST,
        traces=TRACES,
        trees=trees,
        tokenizer=tiny.tokenizer(),
        max_tokens=256,
    )
    return load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))


def one_step(
    trainer_class: Any, config_class: Any, data: Any, tmp_path: Path, tokenizer: Any, **other: Any
) -> dict[str, Any]:
    """Train for one optimizer step; returns the log of that step."""
    model = tiny.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_class(
        model=model,
        args=config_class(
            output_dir=str(tmp_path / "trainer"),
            max_steps=1,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            max_length=256,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        **other,
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert any(not torch.equal(p.detach(), before[name]) for name, p in model.named_parameters())
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("file_type", ["jsonl", "parquet"])
def test_sft(tmp_path: Path, file_type: str) -> None:
    data = exported(tmp_path, "sft", file_type)
    assert one_step(SFTTrainer, SFTConfig, data, tmp_path, tiny.tokenizer())["loss"] > 0


def test_sft_learns_the_whole_solution_and_its_end_but_not_the_prompt(tmp_path: Path) -> None:
    data, tokenizer = exported(tmp_path, "sft"), tiny.tokenizer()
    args = SFTConfig(output_dir=str(tmp_path / "t"), use_cpu=True, bf16=False, report_to="none", max_length=256)
    trainer = SFTTrainer(model=tiny.model(), args=args, train_dataset=data, processing_class=tokenizer)
    for made, row in zip(trainer.train_dataset, data, strict=True):
        learned = tokenizer.decode([token for token in made["labels"] if token != -100])
        assert learned == row["completion"] + tiny.EOS
        assert tokenizer.decode(made["input_ids"]) == row["prompt"] + row["completion"] + tiny.EOS


def test_chat(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + tiny.EOS + "{% endfor %}"
    data = exported(tmp_path, "chat")
    assert one_step(SFTTrainer, SFTConfig, data, tmp_path, tokenizer)["loss"] > 0


def test_preference(tmp_path: Path) -> None:
    data = exported(tmp_path, "preference")
    assert set(data["kind"]) == {"solution"}
    log = one_step(DPOTrainer, DPOConfig, data, tmp_path, tiny.tokenizer(), ref_model=tiny.model())
    assert log["loss"] == pytest.approx(0.693, abs=1e-3)  # before the step the model equals its reference


def test_preference_over_steps(tmp_path: Path) -> None:
    first = select_traces([right()], per_problem=1, require_equations=True)
    keys = [item.chain[0] for item in first]
    trees = [
        {
            "problem_id": right(question=q).problem_id,
            "nodes": [
                {"parent": None, "text": "", "key": "", "value": None, "terminal": False, "answer": None, "merged": 0},
                {
                    "parent": 0,
                    "text": BUY,
                    "key": keys[0],
                    "value": 0.9,
                    "terminal": False,
                    "answer": None,
                    "merged": 2,
                },
                {
                    "parent": 0,
                    "text": "Hm.\n",
                    "key": "hm",
                    "value": 0.1,
                    "terminal": False,
                    "answer": None,
                    "merged": 1,
                },
            ],
        }
        for q in QUESTIONS
    ]
    data = exported(tmp_path, "preference", trees=trees).filter(lambda row: row["kind"] == "step")
    assert len(data) == len(QUESTIONS)
    one_step(DPOTrainer, DPOConfig, data, tmp_path, tiny.tokenizer(), ref_model=tiny.model())


def test_kto(tmp_path: Path) -> None:
    data = exported(tmp_path, "kto")
    assert sorted(set(data["label"])) == [False, True]
    one_step(KTOTrainer, KTOConfig, data.shuffle(seed=0), tmp_path, tiny.tokenizer(), ref_model=tiny.model())


@pytest.mark.parametrize("format", ["stepwise", "values"])
def test_steps_through_our_value_trainer(tmp_path: Path, format: str) -> None:
    tokenizer = tiny.tokenizer()
    traces = [read_stepwise(row, tokenizer) for row in exported(tmp_path, format)]
    dev_problems = {t.problem_id for t in traces if t.question in QUESTIONS[:2]}
    metrics = train_value(
        tiny.model(),
        tokenizer,
        [t for t in traces if t.problem_id not in dev_problems],
        ValueConfig(hidden_size=8, epochs=1.0),
        dev_traces=[t for t in traces if t.problem_id in dev_problems],
        seed=0,
        device="cpu",
        directory=tmp_path / "q",
        base_revision="r",
    )
    assert metrics["train_traces"] == len(traces) / 2


def test_stepwise_rows_become_the_traces_they_came_from(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    read = [read_stepwise(row, tokenizer) for row in exported(tmp_path, "values")]

    def content(t: Trace) -> tuple[Any, ...]:
        return t.problem_id, t.question, t.solution, t.status, t.answer, len(t.steps)

    assert sorted(map(content, read)) == sorted(map(content, TRACES))
    assert all(tokenizer.decode(step.token_ids) == step.text for t in read for step in t.steps)


def test_stepwise_row_without_a_label_per_step_is_refused() -> None:
    row = {"problem_id": "p", "prompt": render_prompt("Q"), "completions": ["a", "b"], "labels": [True]}
    with pytest.raises(UserError, match="2 completions and 1 labels"):
        read_stepwise(row, tiny.tokenizer())
