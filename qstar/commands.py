"""What the verbs of the command line do with a run directory or a configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from qstar.config import RunConfig
from qstar.config_load import with_policy
from qstar.errors import UserError, printable
from qstar.grading.answer import grade
from qstar.problems.load import load_test, load_train_dev
from qstar.problems.problem import Problem
from qstar.run import Run
from qstar.runs.directory import RunDirectory
from qstar.runs.files import write_json
from qstar.runs.journal import Journal
from qstar.search.measure import consistency, explain
from qstar.search.scheduler import SearchTask, check_search, rule_for, search_many
from qstar.search.select import select
from qstar.show import follow, show_solution
from qstar.solver import Solver, check_question


def open_run(path: Path, *stages: str, **policy: Any) -> Run:
    """The run in a folder. policy: fields of its `policy` to change, None for those that stay.

    Raises UserError if it is no run directory, one of `stages` is not finished, or a field has a wrong value.
    """
    directory = RunDirectory.load(path)
    directory.require(*stages)
    run = Run(directory, print)
    run.config = with_policy(run.config, **policy)
    return run


def search_run(
    path: Path,
    strategy: str,
    budget: int | None,
    split: str,
    limit: int | None,
    *,
    explain_nodes: bool,
    to: Path | None,
    **policy: Any,
) -> None:
    """Search problems of a run with one strategy, journal every tree, and print what came of it."""
    from qstar.evaluate.compare import fingerprint

    run = open_run(path, "sft", "train-q", **policy)
    search = dataclasses.replace(run.config.search, strategy=strategy, budget=budget or run.config.search.budget)
    problems = {problem.id: problem for problem in (run.dev if split == "dev" else run.train)[:limit]}
    check_search(search, run.config.policy)
    settings = f"{run.revisions} {fingerprint(search, run.config.policy, run.config.seed)}"
    target = to or path / "searches" / run.revisions / f"{strategy}-{split}-{search.budget}.jsonl"
    with Journal(target) as journal:
        if any(row.get("settings") != settings for row in journal):
            raise UserError(f"{target} was written with other models or settings; delete it or give --to another file")
        sampler, value = run.models(with_value=True)
        tasks = [SearchTask(p.id, p.question) for p in problems.values() if p.id not in journal.keys]
        results = search_many(tasks, sampler, search, run.config.policy, seed=run.config.seed, value=value)
        for result in tqdm(results, total=len(problems), initial=len(problems) - len(tasks), unit="problem"):
            problem, choice = problems[result.problem_id], select(result.tree, rule_for(search))
            solution = result.tree.state(choice.node).solution if choice.node else ""
            journal.append(
                {
                    "key": problem.id,
                    "settings": settings,
                    "gold": problem.answer,
                    "answer": choice.answer,
                    "status": "error" if result.error else grade(solution, problem.answer).status,
                    "error": result.error,
                    "ledger": result.ledger.counts(),
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


def solve_questions(
    question: str | None,
    model: Path | None,
    strategy: str | None,
    budget: int | None,
    seed: int,
    *,
    as_json: bool,
    trace: Path | None,
    **policy: Any,
) -> bool:
    """Solve a question (None: from standard input, one after the other on a terminal) and print the solution.

    Ctrl-C ends a search with the best answer so far. Returns whether that happened to a single question.
    """
    interactive = question is None and sys.stdin.isatty()
    if question is None and not interactive:
        question = sys.stdin.buffer.read().decode(errors="surrogateescape")
    if question is not None:
        check_question(question)  # before anything is loaded
    with _waiting("loading the model"):
        solver = Solver.load(model or newest_run(Path("runs")), **policy)

    def answer(question: str) -> bool:
        last = follow(solver.stream(question.strip(), strategy=strategy, budget=budget, seed=seed))
        solution = last.solution()
        if trace is not None:
            write_json(_free(trace) if interactive else trace, solution.tree.to_json())
        if as_json:
            print(json.dumps(solution.to_json(), indent=2))
        else:
            show_solution(solution, Console())
        if solution.error is not None:
            raise UserError(f"the search ended early: {solution.error}")
        if not last.done:
            print("qstar: interrupted; this is the best answer so far", file=sys.stderr)
        return not last.done

    if question is not None:
        return answer(question)
    while True:
        try:
            question = input("question> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return False
        try:
            answer(question)
        except UserError as error:
            print(f"qstar: {printable(str(error))}", file=sys.stderr)
        except KeyboardInterrupt:
            print("qstar: interrupted before the first step", file=sys.stderr)


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _waiting(text: str) -> contextlib.AbstractContextManager[object]:
    """A sign of life on standard error if that is a terminal."""
    return Console(stderr=True).status(text) if sys.stderr.isatty() else contextlib.nullcontext()


def newest_run(folder: Path) -> Path:
    """The run directory in `folder` whose Q head was finished last. Raises UserError if there is none."""
    manifests = sorted(folder.glob("*/train-q/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise UserError(
            f"{folder}/ holds no trained run; train one with `qstar run configs/quickstart.yaml` or use --model"
        )
    return manifests[-1].parents[1]


def export_run(path: Path, format: str, file_type: str, to: Path, repository: str | None = None) -> None:
    """Export the verified traces of a run; with `repository`, also to the hub."""
    from qstar.distill.export import export, push
    from qstar.policy.hub import load_tokenizer

    run = open_run(path, "sft", "train-q", "search")
    selection = run.selection()
    report = export(
        selection,
        format,
        file_type,  # type: ignore[arg-type]  # the command line offers only these
        to,
        provenance=run.provenance(selection),
        test_index=run.test_index,
        traces=run.all_traces(),
        trees=run.trees(),
        tokenizer=load_tokenizer(str(run.teacher_path)),
    )
    funnel = selection.funnel
    print(
        f"{funnel.sampled} traces sampled, {funnel.correct} correct, {funnel.verified} verified, {funnel.texts} "
        f"texts, {funnel.distinct} distinct chains, {funnel.kept} kept, {funnel.drawn} within the token budget"
    )
    for reason, count in report.refused.items():
        print(f"{count} rows refused: {reason}")
    print(f"{report.rows} rows of {report.problems} problems in {to}")
    if repository is not None:
        print(f"uploaded to {push(to, repository)}")


def push_run_value(config: RunConfig, repository: str) -> None:
    """Upload the value of a run's best iteration so far with its card; of several processes the leading one does."""
    from qstar.runs.team import Team
    from qstar.value.card import push_value

    if Team.from_environment().leads:
        print(f"uploaded to {push_value(open_run(config.directory, 'train-q').q_path, repository)}")


def evaluate_run(
    path: Path,
    strategies: tuple[str, ...] | None,
    budgets: tuple[int, ...] | None,
    split: str,
    limit: int | None,
    abstain_below: float | None,
    **policy: Any,
) -> None:
    """Compare strategies on the problems of a split and print every table; the figures go to RUN/evals/.

    policy: fields of the run's `policy` to change, None for those that stay.
    """
    from qstar.evaluate.compare import compare
    from qstar.evaluate.plots import draw_accuracy, draw_coverage
    from qstar.evaluate.table import show

    run = open_run(path, "sft", "train-q", **policy)
    config = run.config
    problems: list[Problem] = (run.dev if split == "dev" else load_test(config.data))[:limit]
    sampler, value = run.models(with_value=True)
    parts = (split, str(len(problems)), run.revisions, policy.get("calculator"))
    folder = path / "evals" / "-".join(filter(None, parts))
    comparison = compare(
        problems,
        sampler,
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


def sweep_run(path: Path, budgets: tuple[int, ...] | None, limit: int | None) -> None:
    """A* on dev problems under every setting of `qstar.evaluate.compare.SWEEP`; the figures go to RUN/evals/."""
    from qstar.evaluate.compare import sweep
    from qstar.evaluate.optimality import optimality
    from qstar.evaluate.table import accuracy_table, heuristic_table, optimality_line

    run = open_run(path, "sft", "train-q")
    problems = run.dev[:limit]
    policy, value = run.models(with_value=True)
    folder = path / "evals" / f"sweep-dev-{len(problems)}-{run.revisions}"
    budgets = budgets or run.config.eval.budgets
    comparison = sweep(problems, policy, value, run.config, folder, run.config.seed, budgets=budgets)
    write_json(folder / "comparison.json", comparison.to_json())
    gap = optimality(problems, policy, value, run.config, max(budgets))
    write_json(folder / "optimality.json", dataclasses.asdict(gap))
    console = Console()
    for table in (accuracy_table(comparison), heuristic_table(comparison)):
        console.print()
        console.print(table)
    print(f"\n{optimality_line(gap, max(budgets))}\nfigures: {folder}")


def audit_run(path: Path, scorer: Path | None) -> None:
    """Audit the right answers among a run's rollouts and searches; the figures go to RUN/audit/."""
    from qstar.distill.audit import Judge, audit
    from qstar.distill.audit_table import show_audit
    from qstar.value.model import ValueModel

    given = Judge.load(scorer) if scorer is not None else None
    run = open_run(path, "sft", "rollout", "train-q", "search")
    # The truth serves to measure only, so problems that keep their steps from the policy have it here too.
    data = dataclasses.replace(run.config.data, gold_solutions=None)
    truth = {problem.id: problem for problem in load_train_dev(data)[0] if problem.values is not None}
    judge = None if truth else given or Judge.of_gold(run.train, run.config.seed)
    policy, value = run.models(with_value=True)
    if value is None:
        value = ValueModel(policy.model, policy.tokenizer, policy.head)
    policies = [at.sampler for at in run.history]
    result = audit(run.all_traces(), value, truth, path / "audit", judge, policies)
    show_audit(result, Console())
    print(f"figures and examples: {path / 'audit'}")


def check_data(config: RunConfig, listing: Path | None = None) -> None:
    """Check the problems of a configuration; `listing` takes the gold equations that do not recompute, one a line.

    Raises UserError if any row fails.
    """
    from qstar.problems.check import check_problems
    from qstar.problems.gold import gold_equations
    from qstar.runs.files import write_text

    train, dev = load_train_dev(config.data)
    report = check_problems(train + dev, load_test(config.data))
    print("\n".join(report.lines()))
    gold = gold_equations(train + dev)
    if gold.found:
        print(gold.line())
    if listing is not None:
        lines = [f"{problem}\t{why}\t{printable(text)}\n" for problem, why, text in gold.doubtful]
        write_text(listing, "".join(lines))
        print(f"{len(lines)} equations that do not recompute: {listing}")
    if report.bad_count:
        raise UserError(f"{report.bad_count} problems failed a check; mend or remove the rows listed above")
