"""The iterations of the loop: which stages there are, what a policy learns from, and that it ends when dev says so."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from qstar.ablate import ablate
from qstar.ablate import main as ablate_main
from qstar.cli import main
from qstar.config import DataConfig, GeneratorConfig, ImproveConfig, RunConfig
from qstar.distill.select import KeptTrace
from qstar.distill.student import advantage_weights
from qstar.errors import UserError
from qstar.improve import graded, replay, weighted_traces
from qstar.run import Run, best_iteration, stage_name
from qstar.runs.directory import RunDirectory
from qstar.stages import plan
from qstar.trace import Trace
from qstar.types import Step

ITERATION = ["rollout", "train-q", "search", "improve"]


def directory(out: Path, iterations: int) -> RunDirectory:
    data = DataConfig(generator=GeneratorConfig(train=40, test=10))
    return RunDirectory(RunConfig(out=str(out), data=data, improve=ImproveConfig(iterations=iterations)))


def finish(run: RunDirectory, name: str, **metrics: Any) -> None:
    stage = run.stage(name)
    stage.begin({})
    stage.finish(metrics, "", 1.0)


def names(run: RunDirectory) -> list[str]:
    return [spec.name for spec in plan(run)]


def test_a_run_without_iterations_has_no_improve_stage_and_reads_none_of_its_fields(tmp_path: Path) -> None:
    run = directory(tmp_path, 0)
    assert names(run) == ["data", "sft", "rollout", "train-q", "search", "export", "distill", "eval"]
    assert not any(field.startswith("improve.") for field in run.inputs(plan(run))["eval"])


def test_iterations_repeat_until_dev_is_no_better(tmp_path: Path) -> None:
    run = directory(tmp_path, 2)
    second, third = ([f"{name}-{i}" for name in ITERATION] for i in (2, 3))
    planned = ["data", "sft", *ITERATION, *second, *third[:3], "export", "distill", "eval"]
    assert names(run) == planned
    finish(run, "improve", dev_before=0.2, dev_after=0.3)
    assert names(run) == planned
    assert best_iteration(run) == 1  # the better policy has no Q head yet
    finish(run, "search-2")
    assert best_iteration(run) == 2
    finish(run, "improve-2", dev_before=0.3, dev_after=0.3)
    assert names(run) == ["data", "sft", *ITERATION, *second, "export", "distill", "eval"]
    assert best_iteration(run) == 2
    assert Run(run, print).teacher_path == run.path / "improve" / "model"
    assert Run(run, print).q_path == run.path / "train-q-2" / "q"


def test_more_iterations_do_not_change_what_earlier_ones_were_made_from(tmp_path: Path) -> None:
    two, three = (directory(tmp_path, n) for n in (2, 3))
    before, after = two.inputs(plan(two)), three.inputs(plan(three))
    assert before["search-3"] == after["search-3"]
    assert before["improve-2"] == after["improve-2"]
    assert before["export"] != after["export"]


def test_every_iteration_practises_on_the_next_problems(tmp_path: Path) -> None:
    run = Run(directory(tmp_path, 3), print)
    count = len(run.practice)
    drawn = [problem.id for i in (1, 2, 3) for problem in run.at(i).batch(count // 3)]
    assert drawn == [problem.id for problem in run.practice][: len(drawn)]
    assert run.at(2).batch(None) == run.practice
    assert run.at(2).batch(count - 1)[1] == run.practice[0]


def trace(solution: str, problem: str = "p", answer: str | None = "3", status: Any = "correct") -> Trace:
    steps = tuple(Step(line, (1, 2), -1.0) for line in solution.splitlines(keepends=True))
    return Trace(problem, "How many?", steps, "terminal", status, answer, "search", "abc")


def kept(solution: str) -> KeptTrace:
    return KeptTrace(trace(solution), (solution,), 1, 0)


def test_replay_mixes_in_its_share_and_nothing_twice() -> None:
    new = [kept(f"1 + {i} = {i + 1}\n") for i in range(6)]
    old = new[:3] + [kept(f"2 + {i} = {i + 2}\n") for i in range(20)] + [kept("2 + 1 = 3\n")]
    drawn = replay(new, old, 0.25, seed=0)
    assert len(drawn) == 2  # 2 of 8 is a quarter
    assert not {item.trace.solution for item in drawn} & {item.trace.solution for item in new}
    assert drawn == replay(new, old[::-1], 0.25, seed=0)
    everything = replay(new, old, 0.9, seed=0)
    assert len(everything) == len({item.trace.solution for item in everything}) == 20
    assert replay(new, old, 0.0, seed=0) == []


def search_row() -> dict[str, Any]:
    """One state with a right step (V 0.8) and a wrong one (V 0.4), each leading to an answer."""

    def node(parent: int | None, text: str, value: float | None, answer: str | None = None) -> dict[str, Any]:
        terminal = answer is not None
        key = text.strip()
        return {
            "parent": parent, "text": text, "key": key, "value": value, "merged": 1, "terminal": terminal,
            "answer": answer,
        }  # fmt: skip

    right, wrong = trace("1 + 2 = 3\n#### 3\n"), trace("1 + 1 = 2\n#### 2\n", answer="2", status="wrong")
    from qstar.distill.select import chain

    (a, a_end), (b, b_end) = chain(right), chain(wrong)
    nodes = [
        node(None, "", 0.6),
        {**node(0, "1 + 2 = 3\n", 0.8), "key": a},
        {**node(0, "1 + 1 = 2\n", 0.4), "key": b},
        {**node(1, "#### 3\n", 0.5, "3"), "key": a_end},
        {**node(2, "#### 2\n", 0.5, "2"), "key": b_end},
    ]
    return {"key": "p", "gold": "3", "traces": [wrong.to_json(), right.to_json()], "tree": {"nodes": nodes}}


def test_the_outcome_is_the_value_of_a_complete_solution() -> None:
    row = search_row()
    assert [node["value"] for node in graded(row["tree"], "3")["nodes"]] == [0.6, 0.8, 0.4, 1.0, 0.0]
    assert row["tree"]["nodes"][3]["value"] == 0.5


def test_steps_of_right_and_wrong_solutions_are_weighted_by_their_advantage() -> None:
    good, bad = weighted_traces([search_row()], 4)
    assert [good.trace.status, bad.trace.status] == ["correct", "wrong"]
    # V of the question is the mean of both steps, 0.6; the only answers after them have no alternative.
    assert [choice and round(choice.advantage, 6) for choice in good.choices] == [0.2, 0.0]
    assert [choice and round(choice.advantage, 6) for choice in bad.choices] == [-0.2, 0.0]
    (up, one), (down, _) = advantage_weights([good, bad])
    assert up / one == pytest.approx(math.exp(0.4))
    assert down / one == pytest.approx(math.exp(-0.4))
    assert len(weighted_traces([search_row()], 1)) == 1


def metrics(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / stage / "manifest.json").read_text())["metrics"]
    return found


SETTINGS = ("improve.sft.epochs=2", "improve.sft.batch_size=16", "improve.sft.checkpoint_steps=2")
GRPO = ("improve.grpo.samples=2", "improve.grpo.questions=2", "improve.grpo.max_tokens=32", "improve.grpo.tokens=200")


@pytest.mark.parametrize("method", ["expert", "advantage", "grpo"])
def test_a_policy_is_improved_and_the_loop_goes_on_with_the_better_one(
    method: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workplace / "runs" / "tiny"
    for stage in ("export", "distill", "eval"):
        shutil.rmtree(run / stage)
    sets = [f"improve.method={method}", "improve.iterations=1", *SETTINGS, *GRPO]
    arguments = ["run", str(run), *(part for item in sets for part in ("--set", item))]
    assert main([*arguments, "--until", "improve"]) == 0, capsys.readouterr().err
    found = metrics(run, "improve")
    assert 0 <= found["dev_before"] <= 1
    assert found["steps"] > 0
    assert (run / "improve" / "model" / "model.safetensors").is_file()
    # Whatever dev said of it: as if it had been better, the next iteration starts from it; then, that it is worse.
    manifest = json.loads((run / "improve" / "manifest.json").read_text())
    manifest["metrics"] |= {"dev_before": 0.0, "dev_after": 1.0}
    (run / "improve" / "manifest.json").write_text(json.dumps(manifest))
    if method == "grpo":
        assert found["generated_tokens"] > 0
        return
    assert main([*arguments, "--until", "search-2"]) == 0, capsys.readouterr().err
    revisions = {
        row["traces"][0]["policy"]
        for stage in ("rollout", "rollout-2")
        for row in map(json.loads, (run / stage / "train.jsonl").read_text().splitlines())
    }
    assert len(revisions) == 2
    assert main([*arguments, "--status"]) == 0
    assert "search-2" in capsys.readouterr().out


def test_ablation_changes_one_stage_and_leaves_the_run_alone(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workplace / "runs" / "tiny"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    base, changed = ablate(run, "train-q", ["value.epochs=1 value.hidden_size=8"], [0, 1])
    trained = metrics(run, "train-q")
    assert base.metrics[0]["auc"] == trained["auc"]  # seed 0 is the run's own
    assert base.metrics[0] != base.metrics[1]
    assert changed.values("auc") != base.values("auc")
    assert {path: path.read_bytes() for path in before} == before
    work = run / "ablations"
    assert [path.name for path in work.iterdir()] == ["train-q.jsonl"]
    journal = (work / "train-q.jsonl").read_bytes()
    capsys.readouterr()
    command = [str(run), "train-q", "--try", "value.epochs=1 value.hidden_size=8", "--seeds", "0,1", "--show", "ece"]
    assert ablate_main([*command, "--json", str(workplace / "a.json")]) == 0
    assert "±" in capsys.readouterr().out
    assert (work / "train-q.jsonl").read_bytes() == journal  # nothing is done twice
    written = json.loads((workplace / "a.json").read_text())
    assert [item["name"] for item in written["variations"]] == [base.name, changed.name]


def test_students_of_other_selections_can_be_compared(workplace: Path) -> None:
    run = workplace / "runs" / "tiny"
    names = [f"traces.selection={order} traces.tokens=200" for order in ("random", "informed")]
    whole, random, informed = ablate(run, "distill", names, [0])
    assert whole.values("student_steps") == [metrics(run, "distill")["student_steps"]]
    assert random.values("gold_and_traces")[0] < whole.values("gold_and_traces")[0]
    assert 0 <= informed.values("student_dev")[0] <= 1
    assert informed.values("student_trained_junction_loss")[0] > 0


@pytest.mark.parametrize(
    ("stage", "variation", "says"),
    [
        ("train-k", "value.epochs=1", "there is no stage train-k"),
        ("train-q", "student.loss=advantage", "does not read"),
        ("train-q", "value.epochs=-1", "value.epochs"),
        ("improve", "", "there is no stage improve"),
        ("distill", "rollout.samples=2", "changes stage rollout"),
    ],
)
def test_ablation_refuses_what_would_show_nothing(stage: str, variation: str, says: str, workplace: Path) -> None:
    with pytest.raises(UserError, match=says):
        ablate(workplace / "runs" / "tiny", stage, [variation], [0])


def test_improve_settings_out_of_range_are_named(tmp_path: Path) -> None:
    from qstar.config_load import check_ranges

    for changes, field in (({"replay": 1.0}, "improve.replay"), ({"iterations": -1}, "improve.iterations")):
        with pytest.raises(UserError, match=field):
            check_ranges(dataclasses.replace(RunConfig(), improve=ImproveConfig(**changes)))  # type: ignore[arg-type]


def test_stage_names() -> None:
    assert [stage_name("search", i) for i in (1, 2)] == ["search", "search-2"]
    assert stage_name("eval", 2) == "eval"


def test_a_learning_curve_uses_the_first_problems_only(workplace: Path) -> None:
    run = workplace / "runs" / "tiny"
    whole, part = ablate(run, "train-q", ["value.problems=24"], [0])
    assert whole.values("train_traces") == [metrics(run, "train-q")["train_traces"]]
    assert part.values("train_traces") == [24 * 4]
