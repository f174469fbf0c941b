"""What the verbs of the command line do with a run directory or a configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from qstar.config import RunConfig
from qstar.errors import UserError
from qstar.grading.answer import grade
from qstar.problems.load import load_test, load_train_dev
from qstar.problems.problem import Problem
from qstar.runs.directory import RunDirectory
from qstar.runs.files import write_json
from qstar.runs.journal import Journal
from qstar.search.ledger import Ledger
from qstar.search.measure import consistency, explain
from qstar.search.scheduler import SearchTask, rule_for, search_many
from qstar.search.select import select
from qstar.solver import Solution, Solver
from qstar.stages import Run


def open_run(path: Path, *stages: str) -> Run:
    """The run in a folder. Raises UserError if it is no run directory or one of `stages` is not finished."""
    directory = RunDirectory.load(path)
    for name in stages:
        if not directory.stage(name).done:
            raise UserError(f"{path} has no finished {name} stage; continue it with `qstar run {path / 'config.yaml'}`")
    return Run(directory, print)


def search_run(
    path: Path,
    strategy: str,
    budget: int | None,
    split: str,
    limit: int | None,
    *,
    explain_nodes: bool,
    to: Path | None,
) -> None:
    """Search problems of a run with one strategy, journal every tree, and print what came of it."""
    run = open_run(path, "sft", "train-q")
    search = dataclasses.replace(run.config.search, strategy=strategy, budget=budget or run.config.search.budget)
    problems = {problem.id: problem for problem in (run.dev if split == "dev" else run.train)[:limit]}
    search_many((), None, search, run.config.policy, seed=0)  # type: ignore[arg-type]  # refuses bad settings early
    policy, value = run.models(with_value=True)
    target = to or path / "searches" / f"{strategy}-{split}-{search.budget}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with Journal(target) as journal:
        tasks = [SearchTask(p.id, p.question) for p in problems.values() if p.id not in journal.keys]
        results = search_many(tasks, policy, search, run.config.policy, seed=run.config.seed, value=value)
        for result in tqdm(results, total=len(problems), initial=len(problems) - len(tasks), unit="problem"):
            problem, choice = problems[result.problem_id], select(result.tree, rule_for(search))
            solution = result.tree.state(choice.node).solution if choice.node else ""
            ledger = dataclasses.asdict(result.ledger)
            del ledger["seconds"]
            journal.append(
                {
                    "key": problem.id,
                    "gold": problem.answer,
                    "answer": choice.answer,
                    "status": "error" if result.error else grade(solution, problem.answer).status,
                    "error": result.error,
                    "ledger": ledger,
                    "violations": dataclasses.asdict(consistency(result.tree)),
                    "tree": result.tree.to_json(),
                }
            )
            if explain_nodes:
                tqdm.write("\n".join(explain(result.tree)) + "\n")
        journal.sort()
        rows = [row for row in journal if row["key"] in problems]
    statuses = [row["status"] for row in rows]
    edges = sum(row["violations"]["edges"] for row in rows)
    violated = sum(row["violations"]["violations"] for row in rows)
    print(
        f"{strategy} on {len(rows)} {split} problems: {statuses.count('correct') / len(rows):.1%} correct, "
        f"{statuses.count('error')} errors, {sum(r['ledger']['policy_tokens'] for r in rows) / len(rows):.0f} policy "
        f"tokens each, {violated} of {edges} edges violate the consistency of h"
    )
    print(f"trees: {target}")


def solve_question(
    question: str,
    model: Path | None,
    strategy: str | None,
    budget: int | None,
    seed: int,
    *,
    as_json: bool,
    trace: Path | None,
) -> None:
    """Solve one question and print the solution."""
    if not question.strip():
        raise UserError('the question is empty; give it as an argument, such as qstar solve "Tom has ..."')
    solver = Solver.load(model or newest_run(Path("runs")))
    solution = solver.solve(question, strategy=strategy, budget=budget, seed=seed)
    if trace is not None:
        write_json(trace, solution.tree.to_json())
    if as_json:
        print(json.dumps(solution.to_json(), indent=2))
    else:
        show_solution(solution, Console())
    if solution.error is not None:
        raise UserError(f"the search ended early: {solution.error}")


def newest_run(folder: Path) -> Path:
    """The run directory in `folder` whose Q head was finished last. Raises UserError if there is none."""
    manifests = sorted(folder.glob("*/train-q/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise UserError(
            f"{folder}/ holds no trained run; train one with `qstar run configs/quickstart.yaml` or use --model"
        )
    return manifests[-1].parents[1]


def show_solution(solution: Solution, console: Console) -> None:
    """The chosen solution step by step with V as a bar, the answer, the other answers and the cost."""
    table = Table(box=None, pad_edge=False)
    for name in ("step", "Q", "", ""):
        table.add_column(name)
    for step in solution.steps:
        mark = {True: "✓", False: "✗ false equation", None: ""}[step.equations_hold]
        number = "" if step.value is None else f"{step.value:.2f}"
        table.add_row(escape(step.text), number, bar(step.value), mark)
    console.print(table)
    if solution.answer is None:
        console.print("no complete solution within the budget; raise --budget", style="bold")
    else:
        console.print(f"answer {solution.answer}  (share of the vote {solution.confidence:.0%})", style="bold")
        others = [f"{answer} {share:.0%}" for answer, share in solution.votes if answer != solution.answer]
        if others:
            console.print(f"other answers: {', '.join(others[:5])}")
    ledger: Ledger = solution.ledger
    console.print(
        f"cost: {ledger.policy_tokens} tokens generated, {ledger.prompt_tokens} prefix tokens encoded, "
        f"{ledger.expansions} expansions, {ledger.nodes} nodes, {ledger.seconds:.1f} s"
    )


def bar(value: float | None, width: int = 10) -> str:
    """A value in [0, 1] as a bar of block characters."""
    if value is None:
        return ""
    return "█" * round(value * width) + "░" * (width - round(value * width))


def export_run(path: Path, format: str, file_type: str, to: Path) -> None:
    """Export the verified traces of a run."""
    from qstar.distill.export import export
    from qstar.policy.hub import load_tokenizer
    from qstar.problems.contamination import TestIndex

    run = open_run(path, "sft", "train-q", "search")
    selection = run.selection()
    report = export(
        selection,
        format,
        file_type,  # type: ignore[arg-type]  # the command line offers only these
        to,
        provenance=run.provenance(selection),
        test_index=TestIndex.from_problems(load_test(run.config.data)),
        traces=run.all_traces(),
        trees=run.trees(),
        tokenizer=load_tokenizer(str(run.teacher_path)),
    )
    funnel = selection.funnel
    print(
        f"{funnel.sampled} traces sampled, {funnel.correct} correct, {funnel.verified} verified, {funnel.distinct} "
        f"distinct chains, {funnel.kept} kept"
    )
    for reason, count in report.refused.items():
        print(f"{count} rows refused: {reason}")
    print(f"{report.rows} rows of {report.problems} problems in {to}")


def evaluate_run(
    path: Path,
    strategies: tuple[str, ...] | None,
    budgets: tuple[int, ...] | None,
    split: str,
    limit: int | None,
    abstain_below: float | None,
) -> None:
    """Compare strategies on the problems of a split and print every table; the figures go to RUN/evals/."""
    from qstar.evaluate.compare import compare
    from qstar.evaluate.plots import draw_accuracy, draw_coverage
    from qstar.evaluate.table import show

    run = open_run(path, "sft", "train-q")
    config = run.config
    problems: list[Problem] = (run.dev if split == "dev" else load_test(config.data))[:limit]
    policy, value = run.models(with_value=True)
    folder = path / "evals" / f"{split}-{len(problems)}"
    comparison = compare(
        problems,
        policy,
        value,
        config,
        strategies=strategies or config.eval.strategies,
        budgets=budgets or config.eval.budgets,
        directory=folder,
        seed=config.seed,
    )
    write_json(folder / "comparison.json", comparison.to_json())
    draw_accuracy(comparison, folder / "accuracy.png")
    draw_coverage(comparison, folder / "coverage.png")
    show(comparison, abstain_below=abstain_below)
    print(f"figures: {folder}")


def check_data(config: RunConfig) -> None:
    """Check the problems of a configuration. Raises UserError if any row fails."""
    from qstar.problems.check import check_problems

    train, dev = load_train_dev(config.data)
    report = check_problems(train + dev, load_test(config.data))
    print("\n".join(report.lines()))
    if report.bad_count:
        raise UserError(f"{report.bad_count} problems failed a check; mend or remove the rows listed above")
