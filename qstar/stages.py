"""The stages of a run. Each reads what earlier stages wrote and can be killed and started again at any point.

data     problems, split into train and dev
sft      the policy: supervised fine-tuning on the gold solutions
rollout  graded samples of the policy on train and dev problems
train-q  the Q-value head, from the outcomes of the rollouts, calibrated on dev
search   A* with the known answer as goal test: verified traces for train problems
export   selection: one trace per equation chain, as prompt and completion
distill  the student on gold and traces, and its baseline on gold alone, at equal optimizer steps
eval     every strategy at equal generated tokens, the only stage that reads the test split
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qstar import __version__
from qstar.config import RunConfig, SftConfig
from qstar.problems.load import load_test, load_train_dev
from qstar.problems.problem import Problem
from qstar.rollout import read_traces, rollout
from qstar.runs.directory import RunDirectory, Stage, StageSpec
from qstar.runs.files import write_json
from qstar.runs.journal import Journal
from qstar.runs.team import Team
from qstar.runs.tracking import Tracking
from qstar.trace import Trace
from qstar.types import derive_seed

if TYPE_CHECKING:
    from qstar.distill.card import Provenance
    from qstar.distill.select import Selection
    from qstar.problems.contamination import TestIndex

Say = Callable[[str], None]


class Run:
    """A run directory with its problems and, once trained, its models. Models load on first use."""

    def __init__(self, directory: RunDirectory, say: Say) -> None:
        self.directory = directory
        self.config: RunConfig = directory.config
        self.say = say

    @cached_property
    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """Train and dev problems."""
        return load_train_dev(self.config.data)

    @property
    def train(self) -> list[Problem]:
        return self.problems[0]

    @property
    def dev(self) -> list[Problem]:
        return self.problems[1]

    @property
    def practice(self) -> list[Problem]:
        """Train problems, those whose solution the policy has not learned from first.

        On the others it repeats what it has seen, and a Q head would learn from that what does not hold elsewhere.
        """
        return sorted(self.train, key=lambda problem: problem.steps is not None)

    @cached_property
    def tracking(self) -> Tracking:
        """Where figures go. Raises UserError if the tracker is not installed."""
        return Tracking(self.directory.path, self.config.report_to)

    @cached_property
    def device(self) -> str:
        from qstar.policy.hub import resolve_device

        device, team = resolve_device(self.config.policy.device), Team.from_environment()
        return f"cuda:{team.local_rank}" if device == "cuda" and team.size > 1 else device

    @property
    def teacher_path(self) -> Path:
        return self.directory.stage("sft").path / "model"

    @cached_property
    def revision(self) -> str:
        """Content revision of the policy."""
        from qstar.policy.hub import model_revision

        return model_revision(str(self.teacher_path))

    @property
    def sampler(self) -> str:
        """Names the model that samples: the policy's content revision, or 12 hex digits for one on a server."""
        name = self.config.policy.remote_model
        return self.revision if name is None else f"{derive_seed(self.revision, name):016x}"[:12]

    @cached_property
    def q_revision(self) -> str:
        """Content revision of the Q head."""
        from qstar.policy.hub import model_revision

        return model_revision(str(self.directory.stage("train-q").path / "q"))

    @property
    def revisions(self) -> str:
        """Of policy and Q head, as part of a file name: results of other models are never taken for theirs."""
        return f"{self.sampler[:8]}-{self.q_revision[:8]}"

    def models(self, *, with_value: bool) -> tuple[Any, Any]:
        """The policy and, for a separate trunk, the value model (else None: the policy's head gives the values)."""
        from qstar.solver import load_models

        return load_models(
            self.teacher_path,
            self.directory.stage("train-q").path / "q" if with_value else None,
            self.config.policy,
            self.device,
        )

    def traces(self, stage: str, file: str) -> Iterator[Trace]:
        """All traces that a stage journalled, in order of problem id."""
        with Journal(self.directory.stage(stage).path / file) as journal:
            yield from read_traces(journal)

    def provenance(self, selection: Selection) -> Provenance:
        """How the selected traces were made, for the card of an export."""
        from qstar.distill.card import Provenance

        config = self.config
        source, licence = {
            "generator": ("generated problems", "apache-2.0"),
            "gsm8k": ("openai/gsm8k", "mit"),
            "file": (Path(config.data.path or "").name, "other"),
        }[config.data.source]
        return Provenance(
            policy=self.sampler,
            q=self.q_revision,
            strategy=config.search.strategy,
            budget=config.traces.budget,
            seed=config.seed,
            grader=f"qstar {__version__}",
            source=source,
            licence=licence,
            per_problem=config.traces.per_problem,
            require_equations=config.traces.require_equations,
            funnel=selection.funnel,
        )

    def all_traces(self) -> Iterator[Trace]:
        """Graded traces of train problems: of the search and, if configured, of the rollouts."""
        from qstar.distill.select import merge_traces

        streams = [self.traces("search", "trees.jsonl")]
        if self.config.traces.include_rollouts:
            streams.append(self.traces("rollout", "train.jsonl"))
        return merge_traces(*streams)

    def trees(self) -> Iterator[dict[str, Any]]:
        """The search trees of train problems as JSON data, in order of problem id."""
        with Journal(self.directory.stage("search").path / "trees.jsonl") as journal:
            yield from (row["tree"] for row in journal)

    def selection(self) -> Selection:
        """The traces worth learning from, with what the search trees say of their steps."""
        from qstar.distill.select import draw, select_traces, solve_rates

        config = self.config.traces
        selection = select_traces(
            self.all_traces(),
            per_problem=sys.maxsize if config.selection == "random" else config.per_problem,
            require_equations=config.require_equations,
            solve_rate=solve_rates(self.traces("rollout", "train.jsonl")) if config.selection == "informed" else None,
            wordings=config.wordings,
            trees=self.trees(),
        )
        if config.tokens is None:
            return selection
        return draw(selection, config.tokens, config.selection, seed=self.config.seed)

    @cached_property
    def test_index(self) -> TestIndex:
        """The questions of the test split, to refuse training rows that repeat one; nothing else of it is read."""
        from qstar.problems.contamination import TestIndex

        return TestIndex.from_problems(load_test(self.config.data))


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
    for split, problems, samples in (
        ("train", run.practice[: config.rollout.problems], config.rollout.samples),
        ("dev", run.dev[: config.rollout.dev_problems], config.rollout.dev_samples),
    ):
        with stage.journal(f"{split}.jsonl", total=len(problems)) as journal:
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
            )
            journal.sort()
            rows = list(journal)
        statuses = [trace["status"] for row in rows for trace in row["traces"]]
        metrics[f"{split}_traces"] = len(statuses)
        metrics[f"{split}_correct"] = statuses.count("correct") / len(statuses)
        metrics[f"{split}_errors"] = statuses.count("error")
        solved = sum(any(trace["status"] == "correct" for trace in row["traces"]) for row in rows)
        metrics[f"{split}_solved_once"] = solved / len(rows)
        metrics[f"{split}_tokens"] = sum(row["tokens"] for row in rows)
    return metrics


def train_q(run: Run, stage: Stage) -> dict[str, Any]:
    """Fit the Q-value head to the outcomes of the rollouts and calibrate it on dev problems."""
    from qstar.policy.hub import load_causal_lm, load_tokenizer
    from qstar.value.train import train_value

    config = run.config
    model = load_causal_lm(str(run.teacher_path), dtype=config.policy.dtype, device=run.device)
    with run.tracking.log("train-q", stage.path) as log:
        return train_value(
            model,
            load_tokenizer(str(run.teacher_path)),
            list(run.traces("rollout", "train.jsonl")),
            config.value,
            dev_traces=list(run.traces("rollout", "dev.jsonl")),
            seed=config.seed,
            device=run.device,
            directory=stage.path / "q",
            base_revision=run.revision,
            on_epoch=lambda figures: log(figures["epoch"], figures),
        )


def search(run: Run, stage: Stage) -> dict[str, Any]:
    """Search train problems with the known answer as goal test, for verified traces."""
    from qstar.distill.build import build_traces

    config = run.config
    policy, value = run.models(with_value=True)
    budget = dataclasses.replace(config.search, budget=config.traces.budget)
    problems = run.practice[: config.traces.problems]
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
    from qstar.distill.student import student_examples

    config = run.config.student
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
            frequency_aware=config.loss == "frequency",
            lora_rank=config.lora_rank,
            tracking=run.tracking.training(folder, stage.path),
        )
        metrics |= {f"{name}_{key}": value for key, value in trained.items()}
        if on_policy:
            metrics |= _on_policy(run, stage, model, tokenizer)
    return metrics


def evaluate(run: Run, stage: Stage) -> dict[str, Any]:
    """Compare the strategies, the student and its baseline on problems that nothing was trained on."""
    from rich.console import Console

    from qstar.evaluate.compare import compare
    from qstar.evaluate.table import accuracy_table
    from qstar.solver import load_models

    config = run.config
    problems = (run.dev if config.eval.split == "dev" else load_test(config.data))[: config.eval.problems]
    settings: dict[str, Any] = {
        "budgets": config.eval.budgets,
        "directory": stage.path / "searches",
        "seed": config.seed,
    }
    policy, value = run.models(with_value=True)
    comparison = compare(problems, policy, value, config, strategies=config.eval.strategies, name="policy", **settings)
    here = dataclasses.replace(config.policy, remote=None, remote_model=None)  # a server has the policy alone
    for name in ("baseline", "student"):
        model, _ = load_models(run.directory.stage("distill").path / name, None, here, run.device)
        comparison += compare(problems, model, None, config, strategies=("greedy",), name=name, **settings)
    write_json(stage.path / "comparison.json", comparison.to_json())
    Console().print(accuracy_table(comparison))
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

STAGES = (
    StageSpec("data", data, ("data",)),
    StageSpec("sft", sft, ("seed", "policy.init", "policy.revision", "policy.scratch", "sft"), joint=True),
    StageSpec("rollout", rollouts, ("policy", "rollout")),
    StageSpec("train-q", train_q, ("value",)),
    StageSpec("search", search, ("search", *_TRACES_SEARCHED)),
    StageSpec("export", export, ("traces",)),
    StageSpec("distill", distill, ("student",), joint=True),
    StageSpec("eval", evaluate, ("eval",)),
)
