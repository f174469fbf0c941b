"""The stages of a run. Each reads what earlier stages wrote and can be killed and started again at any point.

data     problems, split into train and dev
sft      the policy: supervised fine-tuning on the gold solutions
rollout  graded samples of the policy on train and dev problems
train-q  the Q-value head, from the outcomes of the rollouts, calibrated on dev
search   A* with the known answer as goal test: verified traces for train problems
improve  the next policy, from these traces, compared on dev; rollout to improve are repeated (rollout-2, ...)
export   selection: one trace per equation chain, as prompt and completion
distill  the student on gold and traces, and its baseline on gold alone, at equal optimizer steps
eval     every strategy at equal generated tokens, the only stage that reads the test split
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qstar.config import SftConfig
from qstar.improve import improve
from qstar.problems.load import load_test
from qstar.problems.problem import Problem
from qstar.rollout import rollout
from qstar.run import Run, best_iteration, improved, stage_name
from qstar.runs.directory import RunDirectory, Stage, StageSpec
from qstar.runs.files import write_json
from qstar.runs.team import Team

if TYPE_CHECKING:
    from qstar.distill.junction_loss import JunctionLoss


def data(run: Run, stage: Stage) -> dict[str, Any]:
    """Load, split and check the problems."""
    from qstar.problems.check import check_problems

    report = check_problems(run.train + run.dev, [])
    if report.bad_count:
        run.say(f"{report.bad_count} rows look wrong; `qstar data check` lists them")
    return {
        "train": len(run.train),
        "dev": len(run.dev),
        "with_gold_steps": sum(problem.steps is not None for problem in run.train),
        "bad_rows": report.bad_count,
    }


def sft(run: Run, stage: Stage) -> dict[str, Any]:
    """Fine-tune (or train from nothing) the policy on the gold solutions."""
    from qstar.distill.student import student_examples
    from qstar.policy.sft import build_base

    config = run.config
    model, tokenizer = build_base(
        config.policy.init,
        config.policy.scratch,
        texts=_texts(run.train),
        dtype=config.sft.dtype,
        device=run.device,
        seed=config.seed,
        revision=config.policy.revision,
    )
    examples = student_examples(run.train, [])
    tracking = run.tracking.training("sft", stage.path)
    return _train(run, stage.path / "model", model, tokenizer, examples, config.sft, tracking=tracking)


def rollouts(run: Run, stage: Stage) -> dict[str, Any]:
    """Sample the policy on train problems (labels) and dev problems (calibration)."""
    config, limits = run.config, run.config.policy
    policy, _ = run.models(with_value=False)
    metrics: dict[str, Any] = {}
    for split, problems, samples, allocation in (
        ("train", run.batch(config.rollout.problems), config.rollout.samples, config.rollout.allocation),
        ("dev", run.dev[: config.rollout.dev_problems], config.rollout.dev_samples, "uniform"),
    ):
        total = len(problems) * (1 + (allocation == "uncertain"))
        with stage.journal(f"{split}.jsonl", total=total) as journal:
            rollout(
                problems,
                policy,
                limits,
                journal,
                samples=samples,
                max_tokens=config.rollout.max_tokens,
                seed=config.seed,
                revision=run.sampler,
                label=f"rollouts on {split}",
                allocation=allocation,
            )
            journal.sort()
            rows = list(journal)
        statuses = [trace["status"] for row in rows for trace in row["traces"]]
        metrics[f"{split}_traces"] = len(statuses)
        metrics[f"{split}_correct"] = statuses.count("correct") / len(statuses)
        metrics[f"{split}_errors"] = statuses.count("error")
        solved = {trace["problem_id"] for row in rows for trace in row["traces"] if trace["status"] == "correct"}
        metrics[f"{split}_solved_once"] = len(solved) / len(problems)
        metrics[f"{split}_tokens"] = sum(row["tokens"] for row in rows)
    return metrics


def train_q(run: Run, stage: Stage) -> dict[str, Any]:
    """Fit the Q-value head to the outcomes of the rollouts and calibrate it on dev problems."""
    from qstar.policy.hub import load_causal_lm, load_tokenizer
    from qstar.value.train import train_value

    config = run.config
    chosen = {problem.id for problem in run.batch(config.rollout.problems)[: config.value.problems]}
    model = load_causal_lm(str(run.teacher_path), dtype=config.policy.dtype, device=run.device)
    with run.tracking.log("train-q", stage.path) as log:
        return train_value(
            model,
            load_tokenizer(str(run.teacher_path)),
            [trace for trace in run.traces("rollout", "train.jsonl") if trace.problem_id in chosen],
            config.value,
            dev_traces=list(run.traces("rollout", "dev.jsonl")),
            trees=[(row["tree"], row["gold"]) for past in run.history[:-1] for row in past.searches()]
            if config.value.target in ("tree_mean", "tree_max")
            else (),
            seed=config.seed,
            device=run.device,
            directory=stage.path / "q",
            base_revision=run.revision,
            on_epoch=lambda figures: log(figures["epoch"], figures),
            hidden=stage.shared,
        )


def search(run: Run, stage: Stage) -> dict[str, Any]:
    """Search train problems with the known answer as goal test, for verified traces."""
    from qstar.distill.build import build_traces

    config = run.config
    policy, value = run.models(with_value=True)
    budget = dataclasses.replace(config.search, budget=config.traces.budget)
    problems = run.batch(config.traces.problems)
    with stage.journal("trees.jsonl", total=len(problems)) as journal:
        build_traces(
            problems,
            policy,
            value,
            budget,
            config.policy,
            journal,
            per_problem=config.traces.per_problem,
            seed=config.seed,
            revision=run.sampler,
        )
        journal.sort()
        rows = list(journal)
    return {
        "problems": len(rows),
        "solved": sum(any(t["status"] == "correct" for t in row["traces"]) for row in rows) / max(1, len(rows)),
        "tokens": sum(row["ledger"]["policy_tokens"] for row in rows),
        "errors": sum(row["error"] is not None for row in rows),
    }


def export(run: Run, stage: Stage) -> dict[str, Any]:
    """Select verified traces, one per equation chain, and write them as prompts and completions."""
    from qstar.distill.export import export as write_export
    from qstar.policy.hub import load_tokenizer

    selection = run.selection()
    report = write_export(
        selection,
        "sft",
        "jsonl",
        stage.path / "sft",
        provenance=run.provenance(selection),
        test_index=run.test_index,
        tokenizer=load_tokenizer(str(run.teacher_path)),
    )
    return {**dataclasses.asdict(selection.funnel), "rows": report.rows, "refused": sum(report.refused.values())}


def distill(run: Run, stage: Stage) -> dict[str, Any]:
    """Train the student on gold solutions and traces, and its baseline on gold alone, at equal optimizer steps."""
    from qstar.distill.junction_loss import held_out, junction_loss
    from qstar.distill.student import student_examples
    from qstar.policy.hub import load_causal_lm, load_tokenizer

    config = run.config.student
    unseen = held_out(list(run.traces("rollout", "dev.jsonl")), run.config.traces.per_problem)
    untrained: JunctionLoss | None = None
    if Team.from_environment().leads:  # the leading process judges
        base, tokenizer = _student_base(run)
        untrained = junction_loss(base.float(), tokenizer, unseen)
    gold = student_examples(run.train, [])
    both = student_examples(run.train, list(run.selection()), loss=config.loss)
    metrics: dict[str, Any] = {"gold": len(gold), "gold_and_traces": len(both)}
    for name, examples in (("student", both), ("baseline", gold)):
        model, tokenizer = _student_base(run)
        metrics["parameters"] = sum(p.numel() for p in model.parameters())
        # As many passes over fewer examples as give the same number of optimizer steps.
        epochs = config.sft.epochs * len(both) / len(examples)
        on_policy = name == "student" and config.method == "on-policy"
        if name == "baseline" and config.method == "on-policy":
            epochs += config.on_policy.steps * config.sft.batch_size / len(examples)
        folder = f"{name}-sft" if on_policy else name
        trained = _train(
            run,
            stage.path / folder,
            model,
            tokenizer,
            examples,
            dataclasses.replace(config.sft, epochs=epochs),
            frequency_aware=name == "student" and config.loss == "frequency",
            lora_rank=config.lora_rank,
            tracking=run.tracking.training(folder, stage.path),
        )
        metrics |= {f"{name}_{key}": value for key, value in trained.items()}
        if on_policy:
            metrics |= _on_policy(run, stage, model, tokenizer)
        if untrained is None:
            continue
        path = stage.path / name
        metrics[f"{name}_dev"] = run.dev_accuracy(path, stage.path / "dev", name)
        model = load_causal_lm(path, dtype="float32", device=run.device)
        for when, loss in (("untrained", untrained), ("trained", junction_loss(model, load_tokenizer(path), unseen))):
            metrics |= {f"{name}_{when}_junction_loss": loss.junction, f"{name}_{when}_other_loss": loss.other}
        metrics |= {"junction_tokens": untrained.junction_tokens, "other_tokens": untrained.other_tokens}
    return metrics


def evaluate(run: Run, stage: Stage) -> dict[str, Any]:
    """Compare the strategies, the student and its baseline on problems that nothing was trained on."""
    from rich.console import Console

    from qstar.evaluate.compare import compare
    from qstar.evaluate.cost import cost_table, show_cost
    from qstar.evaluate.table import accuracy_table

    config = run.config
    problems = (run.dev if config.eval.split == "dev" else load_test(config.data))[: config.eval.problems]
    budgets, directory = config.eval.budgets, stage.path / "searches"
    policy, value = run.models(with_value=True)
    comparison = compare(
        problems,
        policy,
        value,
        config,
        strategies=config.eval.strategies,
        budgets=budgets,
        directory=directory,
        seed=config.seed,
    )
    for name in ("baseline", "student"):
        comparison += run.greedy(run.stage("distill").path / name, problems, directory, name, budgets)
    figures = comparison.to_json()
    write_json(stage.path / "comparison.json", figures)
    costs = cost_table(
        figures["cells"],
        once=sum(
            at.stage("rollout").metrics["train_tokens"] + at.stage("search").metrics["tokens"] for at in run.history
        ),
        trained=run.stage("distill").metrics["student_tokens"],
    )
    write_json(stage.path / "cost.json", dataclasses.asdict(costs))
    Console().print(accuracy_table(comparison))
    Console().print(show_cost(costs))
    return {f"{cell.name}-{cell.strategy}-{cell.budget}": cell.accuracy for cell in comparison.cells}


def _texts(problems: Sequence[Problem]) -> list[str]:
    """What the tokenizer of a new model learns from."""
    return [text for problem in problems for text in (problem.question, *(problem.steps or ()))]


def _on_policy(run: Run, stage: Stage, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Go on from the fine-tuned student in `student-sft/`: match the teacher on the student's own answers."""
    from qstar.distill.on_policy import distill_on_policy
    from qstar.policy.hub import load_causal_lm, load_tokenizer

    config = run.config.student
    questions = [problem.question for problem in run.train]
    report = distill_on_policy(
        load_causal_lm(stage.path / "student-sft", dtype=config.sft.dtype, device=run.device),
        load_causal_lm(run.teacher_path, dtype=config.sft.dtype, device=run.device),
        tokenizer,
        load_tokenizer(run.teacher_path),
        questions,
        config.on_policy,
        lora_rank=config.lora_rank,
        directory=stage.path / "student",
        seed=run.config.seed,
        device=run.device,
        tracking=run.tracking.training("student", stage.path),
    )
    return {"on_policy_steps": report.steps, "on_policy_loss": report.losses[-1][1] if report.losses else None}


def _student_base(run: Run) -> tuple[Any, Any]:
    """The untrained student and its tokenizer."""
    from qstar.policy.hub import load_causal_lm, load_tokenizer
    from qstar.policy.sft import build_base, drop_layers

    config = run.config.student
    if config.init == "drop-layers":
        model = load_causal_lm(str(run.teacher_path), dtype=config.sft.dtype, device=run.device)
        return drop_layers(model, config.layers or model.config.num_hidden_layers // 2), load_tokenizer(
            str(run.teacher_path)
        )
    return build_base(
        config.init,
        config.scratch,
        texts=_texts(run.train),
        dtype=config.sft.dtype,
        device=run.device,
        seed=run.config.seed,
    )


def _train(
    run: Run,
    directory: Path,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Any],
    config: SftConfig,
    **options: Any,
) -> dict[str, Any]:
    """Train into `directory` and return the headline figures. options: more arguments of `sft`."""
    from qstar.policy.sft import sft

    report = sft(
        model,
        tokenizer,
        examples,
        config,
        directory=directory,
        seed=run.config.seed,
        device=run.device,
        max_tokens=config.max_tokens,
        **options,
    )
    return {
        "loss": report.losses[-1][1] if report.losses else None,
        "steps": report.steps,
        "tokens": report.tokens,
        "dropped": report.dropped,
    }


# What else `traces` says chooses among the traces and can be changed without searching again.
_TRACES_SEARCHED = tuple(
    f"traces.{name}" for name in ("problems", "budget", "per_problem", "include_rollouts", "require_equations")
)

_IMPROVE = tuple(f"improve.{name}" for name in ("method", "gold", "replay", "dev_problems", "sft", "grpo"))


def plan(directory: RunDirectory) -> tuple[StageSpec, ...]:
    """The stages of a run in order. An iteration whose policy is no better on dev than the one before is the last."""
    specs = [
        StageSpec("data", data, ("data",)),
        StageSpec("sft", sft, ("seed", "policy.init", "policy.revision", "policy.scratch", "sft"), joint=True),
    ]
    iterations = directory.config.improve.iterations
    for iteration in range(1, iterations + 2):
        stages = [
            StageSpec("rollout", rollouts, ("policy", "rollout")),
            StageSpec("train-q", train_q, ("value",)),
            StageSpec("search", search, ("search", *_TRACES_SEARCHED)),
        ]
        if iteration <= iterations:
            stages.append(StageSpec("improve", improve, ("traces", *_IMPROVE), joint=True))
        for spec in stages:
            name = stage_name(spec.name, iteration)
            specs.append(spec._replace(name=name, run=partial(_at, spec.run, iteration)))
        if iteration <= iterations and improved(directory, iteration) is False:
            break
    looped = ("improve.iterations",) if iterations else ()
    specs += [
        StageSpec("export", partial(_at, export, None), ("traces", *looped)),
        StageSpec("distill", partial(_at, distill, None), ("student",), joint=True),
        StageSpec("eval", partial(_at, evaluate, None), ("eval",)),
    ]
    return tuple(specs)


def _at(
    stage_of: Callable[[Run, Stage], dict[str, Any]], iteration: int | None, run: Run, stage: Stage
) -> dict[str, Any]:
    """Run a stage for an iteration (None: the best one)."""
    return stage_of(run.at(iteration or best_iteration(run.directory)), stage)
