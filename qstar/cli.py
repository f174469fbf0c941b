"""The command line: verbs over run directories. Model libraries load only inside the verb that needs them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qstar.errors import INTERRUPTED, UserError, printable

if TYPE_CHECKING:
    from qstar.config import RunConfig

STAGE_VERBS = {
    "sft": "train the policy on gold solutions",
    "rollout": "sample and grade solutions of the policy",
    "train-q": "fit the Q-value head to the outcomes of the rollouts",
    "distill": "train the student on verified traces, and its gold-only baseline",
}

EXAMPLES = """examples:
  qstar run configs/quickstart.yaml                       the whole loop, offline, in minutes
  qstar run configs/gsm8k-smollm2.yaml --set data.path=data/gsm8k
  qstar run configs/quickstart.yaml --status              what is done, running and left
  qstar runs                                              every run under runs/
  qstar solve "Tom has 3 bags with 4 apples each. How many apples does Tom have?"
  qstar eval runs/quickstart --strategies greedy,majority,astar --budgets 256,512 --split dev
  qstar report runs/quickstart                            figures of a run as one page
  qstar view runs/quickstart                              its search trees as one page
  qstar export runs/quickstart --format chat --to exports/chat
  qstar data check --config configs/quickstart.yaml

A run directory may stand in place of a config, wherever it was moved: qstar run backup/quickstart
`qstar VERB --help` has more examples.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other wrong input."""
        self.exit(2, f"qstar: {printable(message)}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from qstar.search import STRATEGIES

    top = _Parser(
        prog="qstar",
        description="Step-level reinforcement learning with A* search for grade-school math.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, text: str, handler: Callable[[argparse.Namespace], int | None], *examples: str, more: str = ""
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="\n".join(["examples:", *(f"  {line}" for line in examples)] * bool(examples) + [more] * bool(more)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub

    run = verb(
        "run",
        "run every stage that is not done yet",
        _run,
        "qstar run configs/quickstart.yaml",
        "qstar run configs/quickstart.yaml --status",
    )
    _config_arguments(run)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument("--status", action="store_true", help="say what is done, running and left, and stop")
    for name, text in STAGE_VERBS.items():
        text = f"{text} (and any earlier stage that is missing)"
        stage = verb(name, text, _stage, f"qstar {name} configs/quickstart.yaml")
        _config_arguments(stage)
        if name == "train-q":
            stage.add_argument("--push", metavar="OWNER/NAME", help="then upload it, as a private model of the hub")

    search = verb(
        "search",
        "search problems of a run with one strategy and journal every tree",
        _search,
        "qstar search runs/quickstart --strategy astar --split dev --problems 50 --budget 512",
        "qstar search runs/quickstart --problems 1 --explain",
        more="\nstrategies:\n" + "\n".join(f"  {name:<15} {s.description}" for name, s in STRATEGIES.items()),
    )
    _run_arguments(search)
    search.add_argument("--strategy", default="astar", metavar="NAME", help="see the list below (default: astar)")
    search.add_argument("--budget", type=_positive, help="policy tokens per problem (default: the run's search.budget)")
    search.add_argument("--split", choices=("train", "dev"), default="dev", help="problems to search (default: dev)")
    search.add_argument("--problems", type=_positive, metavar="N", help="only the first N problems")
    search.add_argument("--explain", action="store_true", help="print why each node was expanded")
    _policy_arguments(search)
    search.add_argument("--to", type=Path, help="journal file (default: in RUN/searches/)")

    solve = verb(
        "solve",
        "solve a question with search and show the steps with their Q values",
        _solve,
        'qstar solve "Tom has 3 bags with 4 apples each. How many apples does Tom have?"',
        "qstar solve                                              (asks for one question after the other)",
        "qstar solve --model runs/gsm8k-smollm2 --budget 2048 --json < question.txt",
        more="\nCtrl-C ends the search with the best answer so far.",
    )
    solve.add_argument("question", nargs="?", help="the question; if absent, asked for or read from standard input")
    solve.add_argument("--model", type=Path, help="a run directory (default: the newest finished one under runs/)")
    solve.add_argument("--strategy", metavar="NAME", help="see `qstar search --help` (default: the run's)")
    solve.add_argument("--budget", type=_positive, help="policy tokens to spend (default: the run's search.budget)")
    solve.add_argument("--seed", type=int, default=0, help="another seed draws other steps (default: 0)")
    _policy_arguments(solve)
    solve.add_argument("--json", action="store_true", help="print JSON for programs")
    solve.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write the search tree as JSON; when asked for questions, FILE, FILE-2, ...",
    )

    serve = verb(
        "serve",
        "answer questions over an OpenAI-compatible API",
        _serve,
        "qstar serve runs/quickstart",
        "QSTAR_API_KEY=secret qstar serve runs/gsm8k-smollm2 --host 0.0.0.0 --port 8080 --max-budget 2048",
        more="\nwith a server on port 8000:\n"
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\\n"
        '    -d \'{"model": "quickstart", "messages": [{"role": "user", "content": "Tom has 3 bags ..."}]}\'\n'
        "Needs `scripts/setup.sh serve`. docs/serve.md has the parameters, limits and errors.",
    )
    _run_arguments(serve)
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; another one needs QSTAR_API_KEY")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument(
        "--queue", type=int, default=256, help="requests that may wait beyond 64 searches (default: 256)"
    )
    serve.add_argument(
        "--max-budget", type=_positive, default=4096, help="most policy tokens a request (default: 4096)"
    )
    serve.add_argument(
        "--seconds", type=float, default=120.0, help="then a search ends with its best answer so far (default: 120)"
    )
    serve.add_argument(
        "--grace", type=float, default=20.0, help="seconds that searches may go on after a signal (default: 20)"
    )
    serve.add_argument("--log-questions", action="store_true", help="write the text of questions to the log")

    export = verb(
        "export",
        "export verified traces as a training set",
        _export,
        "qstar export runs/quickstart --format sft --to exports/sft",
        "qstar export runs/quickstart --format preference --type parquet --to exports/pairs",
    )
    _run_arguments(export)
    export.add_argument("--format", default="sft", choices=("sft", "chat", "preference", "kto", "stepwise", "values"))
    export.add_argument("--type", default="jsonl", choices=("jsonl", "parquet", "dataset"), help="default: jsonl")
    export.add_argument("--to", type=Path, required=True, help="folder to write")
    export.add_argument("--push", metavar="OWNER/NAME", help="upload it too, as a private dataset of the hub")

    evaluate = verb(
        "eval",
        "compare strategies at equal generated tokens",
        _eval,
        "qstar eval runs/quickstart --split dev --strategies greedy,majority,best_of_n,astar --budgets 256,512",
        "qstar eval runs/quickstart --sweep",
    )
    _run_arguments(evaluate)
    evaluate.add_argument("--strategies", help="comma-separated names (default: the run's eval.strategies)")
    evaluate.add_argument(
        "--budgets", help="comma-separated policy tokens per problem (default: the run's eval.budgets)"
    )
    evaluate.add_argument(
        "--split", choices=("dev", "test"), default="dev", help="default: dev; test is for final results only"
    )
    evaluate.add_argument("--problems", type=_positive, metavar="N", help="only the first N problems")
    evaluate.add_argument(
        "--abstain-below", type=_share, metavar="P", help="also show what giving no answer below this confidence does"
    )
    _policy_arguments(evaluate)
    evaluate.add_argument("--sweep", action="store_true", help="A* under several weights of f and step costs, on dev")

    view = verb(
        "view",
        "write search trees as one self-contained page to look at",
        _view,
        "qstar view runs/quickstart",
        "qstar view tree.json --format text      (a tree of `qstar solve --trace tree.json`)",
    )
    view.add_argument("path", type=Path, help="a run directory, a journal of searches, or the JSON file of one tree")
    view.add_argument("--to", type=Path, help="page to write (default: view.html in the run, or beside the file)")
    view.add_argument(
        "--format", default="html", choices=("html", "text", "dot"), help="text and dot show one tree (default: html)"
    )
    view.add_argument("--problem", metavar="ID", help="only the problem whose id begins with ID")
    view.add_argument("--limit", type=_positive, default=200, metavar="N", help="most problems per journal")

    report = verb(
        "report",
        "write one page of figures about one or several runs",
        _report,
        "qstar report runs/quickstart",
        "qstar report runs/a runs/b --to comparison.html",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; several are overlaid")
    report.add_argument("--to", type=Path, help="page to write (default: report.html in the first run)")

    runs = verb("runs", "list the runs of a folder", _runs, "qstar runs", "qstar runs backup")
    runs.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: runs")

    data = verbs.add_parser("data", help="look at problems").add_subparsers(
        dest="data_verb", required=True, metavar="VERB"
    )
    check = data.add_parser(
        "check", help="grade every gold answer against itself and its mutations; report overlap with test"
    )
    check.set_defaults(handler=_data_check)
    check.add_argument("--config", type=Path, help="YAML config or run directory (default: the generator)")
    check.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="override one field"
    )
    check.add_argument("--list", type=Path, metavar="FILE", help="write the gold equations that do not recompute there")
    traces = verbs.add_parser("traces", help="look at solutions").add_subparsers(
        dest="traces_verb", required=True, metavar="VERB"
    )
    audit = traces.add_parser(
        "audit",
        help="how many right answers have a wrong reason, and how well that can be told",
        description="Flag the traces of a run whose answer is right though a step may be wrong. On generated problems "
        "the truth is known: precision, recall and a curve over thresholds are measured. Elsewhere a judge made of "
        "gold solutions and corrupted ones, or of another run's audit, gives an estimate. Writes RUN/audit/.",
        epilog="examples:\n  qstar traces audit runs/quickstart\n"
        "  qstar traces audit runs/gsm8k-smollm2 --scorer runs/quickstart/audit/audit.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.set_defaults(handler=_audit)
    _run_arguments(audit)
    audit.add_argument(
        "--scorer", type=Path, metavar="FILE", help="audit.json of a run of generated problems, to judge traces by"
    )
    env = verb("env", "print versions and hardware for a bug report", _env, "qstar env", "qstar env --json")
    env.add_argument("--json", action="store_true", help="print JSON for programs")
    completion = verb(
        "completion",
        "print a script that completes commands in a shell",
        _completion,
        "qstar completion bash > ~/.local/share/bash-completion/completions/qstar",
        "qstar completion zsh > ~/.zfunc/_qstar                   (with ~/.zfunc in fpath, before compinit)",
        "qstar completion fish > ~/.config/fish/completions/qstar.fish",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


def _config_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", type=Path, help="YAML config, for instance configs/quickstart.yaml, or a run directory")
    sub.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="override one field, repeatable"
    )


def _run_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, help="a run directory, for instance runs/quickstart")


def _policy_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--calculator", choices=("off", "assist", "prune"), help="in place of the run's policy.calculator")
    sub.add_argument(
        "--remote",
        nargs=2,
        metavar=("URL", "MODEL"),
        help="sample steps with MODEL on an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
    )


def _policy_changes(args: argparse.Namespace) -> dict[str, str | None]:
    url, model = args.remote or (None, None)
    return {"calculator": args.calculator, "remote": url, "remote_model": model}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")


def _config(args: argparse.Namespace) -> RunConfig:
    """The configuration a verb was given: of a YAML file, or of a run directory in the place where it lies now."""
    from qstar.config_load import load_config
    from qstar.runs.directory import RunDirectory

    if args.config is None or not args.config.is_dir():
        return load_config(args.config, args.overrides)
    here = RunDirectory.load(args.config).config
    place = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (("out", here.out), ("name", here.name))
    ]
    return load_config(args.config / "config.yaml", [*place, *args.overrides])


def _run(args: argparse.Namespace) -> None:
    from qstar.loop import run_stages, show_status

    config = _config(args)
    if args.status:
        show_status(config, print)
    else:
        run_stages(config, print, until=args.until)


def _stage(args: argparse.Namespace) -> None:
    from qstar.loop import run_stages

    config = _config(args)
    run_stages(config, print, until=args.verb)
    if getattr(args, "push", None):
        from qstar.commands import push_run_value

        push_run_value(config, args.push)


def _search(args: argparse.Namespace) -> None:
    from qstar.commands import search_run

    search_run(
        args.run,
        args.strategy,
        args.budget,
        args.split,
        args.problems,
        explain_nodes=args.explain,
        to=args.to,
        **_policy_changes(args),
    )


def _solve(args: argparse.Namespace) -> int | None:
    from qstar.commands import solve_questions

    interrupted = solve_questions(
        args.question,
        args.model,
        args.strategy,
        args.budget,
        args.seed,
        as_json=args.json,
        trace=args.trace,
        **_policy_changes(args),
    )
    return INTERRUPTED if interrupted else None


def _serve(args: argparse.Namespace) -> None:
    try:
        from qstar.server.app import Limits
        from qstar.server.run import serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run `scripts/setup.sh serve`") from None
    serve(
        args.run,
        host=args.host,
        port=args.port,
        grace=args.grace,
        key=os.environ.get("QSTAR_API_KEY") or None,
        limits=Limits(queue=max(0, args.queue), seconds=args.seconds, budget=args.max_budget),
        log_questions=args.log_questions,
    )


def _export(args: argparse.Namespace) -> None:
    from qstar.commands import export_run

    export_run(args.run, args.format, args.type, args.to, args.push)


def _eval(args: argparse.Namespace) -> None:
    from qstar.commands import evaluate_run, sweep_run

    strategies = tuple(name.strip() for name in args.strategies.split(",")) if args.strategies else None
    try:
        budgets = tuple(int(text) for text in args.budgets.split(",")) if args.budgets else None
    except ValueError:
        raise UserError(
            f"--budgets {args.budgets!r} must be whole numbers separated by commas, such as 256,512"
        ) from None
    if not args.sweep:
        changes = _policy_changes(args)
        evaluate_run(args.run, strategies, budgets, args.split, args.problems, args.abstain_below, **changes)
    elif args.split == "test" or strategies or args.calculator or args.remote:
        raise UserError(
            "--sweep compares settings of A* on dev: leave out --strategies, --calculator, --remote and --split test"
        )
    else:
        sweep_run(args.run, budgets, args.problems)


def _view(args: argparse.Namespace) -> None:
    from qstar.report.view import view_command

    view_command(args.path, args.to, args.format, args.problem, args.limit)


def _report(args: argparse.Namespace) -> None:
    from qstar.report.report import report_command

    report_command(args.runs, args.to)


def _runs(args: argparse.Namespace) -> None:
    from rich.console import Console

    from qstar.show import show_runs

    show_runs(args.folder, Console())


def _data_check(args: argparse.Namespace) -> None:
    from qstar.commands import check_data

    check_data(_config(args), args.list)


def _audit(args: argparse.Namespace) -> None:
    from qstar.commands import audit_run

    audit_run(args.run, args.scorer)


def _env(args: argparse.Namespace) -> None:
    from qstar.runs.environment import environment, lines

    found = environment()
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))


def _completion(args: argparse.Namespace) -> None:
    from qstar.completion import script

    print(script(parser(), args.shell))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 a user's error, 130 interrupted)."""
    args = parser().parse_args(argv)
    try:
        code: int | None = args.handler(args)
        sys.stdout.flush()  # here, so that a full disk or a closed pipe is reported as any other
        return code or 0
    except UserError as error:
        if args.traceback:
            raise
        print(f"qstar: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nqstar: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (such as `head`) has left; nothing is wrong on our side.
        _drop_output()
        return 0
    except OSError as error:
        if args.traceback:
            raise
        _drop_output()
        what = printable(f"{error.filename or 'output'}: {error.strerror or error}")
        print(f"qstar: {what}; finished work is kept: mend this and run the same command again", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """Forget what standard output still holds: writing it at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
