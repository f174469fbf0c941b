"""One step of policy improvement: the next policy of the loop, from what the last one found.

Algorithm card
    expert      expert iteration: fine-tune the policy on its own verified traces, one per chain of equations.
    advantage   advantage-weighted regression on steps: fine-tune on the complete solutions of the search trees, right
                or wrong, a step a in state s weighted by exp(A(s, a) / beta), with A = Q(s, a) - V(s) of the tree
                (`qstar.distill.junctions`) and the outcome in place of V at the ends, where it is known.
    grpo        group-relative policy optimization on outcomes alone (`qstar.policy.grpo`): the reference.
    Source      Anthony et al. 2017 (expert iteration); Zelikman et al. 2022 (STaR); Singh et al. 2023 (ReST-EM);
                Peng et al. 2019 (advantage-weighted regression).
    Departures  STaR and ReST-EM train every policy from the first checkpoint; here training goes on from the current
                one, with gold solutions and traces of earlier iterations mixed in, which costs one pass and not all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from qstar.distill.junctions import Chain, tree_choices
from qstar.distill.select import KeptTrace, chain, with_choices
from qstar.errors import UserError
from qstar.grading.answer import grade
from qstar.run import Run, stage_name
from qstar.runs.directory import Stage
from qstar.runs.team import Team
from qstar.trace import Trace
from qstar.types import derive_seed


def improve(run: Run, stage: Stage) -> dict[str, Any]:
    """Train the next policy into `model/` and compare both policies' greedy answers on dev.

    dev_before and dev_after in the metrics: shares correct. Raises UserError if there is nothing to learn from.
    """
    config = run.config.improve
    trained = _grpo(run, stage) if config.method == "grpo" else _fine_tune(run, stage)
    if not Team.from_environment().leads:
        return {}
    before = (
        run.directory.stage(stage_name("improve", run.iteration - 1)).metrics["dev_after"]
        if run.iteration > 1
        else run.dev_accuracy(run.teacher_path, stage.path / "dev", "before", config.dev_problems)
    )
    after = run.dev_accuracy(stage.path / "model", stage.path / "dev", "after", config.dev_problems)
    return {"dev_before": before, "dev_after": after, **trained}


def _fine_tune(run: Run, stage: Stage) -> dict[str, Any]:
    from qstar.distill.student import student_examples
    from qstar.policy.hub import load_causal_lm, load_tokenizer
    from qstar.policy.sft import sft

    config = run.config.improve
    *earlier, _ = run.history
    if config.method == "advantage":
        per_problem = run.config.traces.per_problem
        new = weighted_traces(run.searches(), per_problem)
        old = [kept for past in earlier for kept in weighted_traces(past.searches(), per_problem)]
    else:
        new = list(run.selection(own=True))
        old = [kept for past in earlier for kept in past.selection(own=True)]
    replayed = replay(new, old, config.replay, run.config.seed)
    gold = run.train if config.gold else []
    examples = student_examples(
        gold, [*new, *replayed], loss="advantage" if config.method == "advantage" else "uniform"
    )
    if not examples:
        raise UserError("the searches found nothing to learn from; set improve.gold or raise traces.budget")
    model = load_causal_lm(str(run.teacher_path), dtype=config.sft.dtype, device=run.device)
    report = sft(
        model,
        load_tokenizer(str(run.teacher_path)),
        examples,
        config.sft,
        directory=stage.path / "model",
        seed=derive_seed(run.config.seed, "improve", run.iteration),
        device=run.device,
        max_tokens=config.sft.max_tokens,
        tracking=run.tracking.training("improve", stage.path),
    )
    return {
        "examples": len(examples),
        "traces": len(new),
        "replayed": len(replayed),
        "steps": report.steps,
        "trained_tokens": report.tokens,
    }


def _grpo(run: Run, stage: Stage) -> dict[str, Any]:
    from qstar.policy.grpo import train_grpo
    from qstar.policy.hub import load_causal_lm, load_tokenizer

    config, sampled = run.config.improve.grpo, run.stage("rollout").metrics
    report = train_grpo(
        load_causal_lm(str(run.teacher_path), dtype=run.config.improve.sft.dtype, device=run.device),
        load_tokenizer(str(run.teacher_path)),
        [(problem.question, problem.answer) for problem in run.practice],
        config,
        tokens=config.tokens or sampled["train_tokens"] + run.stage("search").metrics["tokens"],
        mean_length=sampled["train_tokens"] / sampled["train_traces"],
        temperature=run.config.policy.temperature,
        top_k=run.config.policy.top_k,
        directory=stage.path / "model",
        seed=derive_seed(run.config.seed, "improve", run.iteration),
        device=run.device,
        tracking=run.tracking.training("improve", stage.path),
    )
    return {"steps": report.steps, "generated_tokens": report.tokens, "reward": report.reward}


def weighted_traces(searches: Iterable[Mapping[str, Any]], most: int) -> list[KeptTrace]:
    """Up to `most` complete solutions of each search (rows of `build_traces`), right or wrong, with their choices.

    Right and wrong ones take turns, so that a problem shows both where it has both; one for each chain of equations.
    """
    kept: list[KeptTrace] = []
    for row in searches:
        choices = tree_choices(graded(row["tree"], row["gold"]))
        right: dict[Chain, Trace] = {}
        wrong: dict[Chain, Trace] = {}
        for trace in map(Trace.from_json, row["traces"]):
            if trace.answer is not None and trace.status != "error":
                (right if trace.status == "correct" else wrong).setdefault(chain(trace), trace)
        pairs = zip_longest(right.items(), wrong.items())
        ranked = [item for pair in pairs for item in pair if item is not None]
        chosen = (KeptTrace(trace, key, 1, rank) for rank, (key, trace) in enumerate(ranked[:most]))
        kept += with_choices(chosen, choices)
    return kept


def graded(tree: Mapping[str, Any], gold: str) -> dict[str, Any]:
    """The tree with the outcome, 1.0 or 0.0, as the value of every complete solution."""

    def right(answer: str | None) -> bool:
        return answer is not None and grade(f"#### {answer}", gold).status == "correct"

    nodes = [{**node, "value": float(right(node["answer"]))} if node["terminal"] else node for node in tree["nodes"]]
    return {**tree, "nodes": nodes}


def replay(new: Sequence[KeptTrace], old: Sequence[KeptTrace], share: float, seed: int) -> list[KeptTrace]:
    """Old traces in a random order, so many that they are `share` of all; none whose solution is among `new`."""
    known = {(kept.trace.question, kept.trace.solution) for kept in new}
    fresh: dict[tuple[str, str], KeptTrace] = {}
    for kept in old:
        key = kept.trace.question, kept.trace.solution
        if key not in known:
            fresh.setdefault(key, kept)
    count = round(len(new) * share / (1 - share))
    order = sorted(fresh, key=lambda key: derive_seed(seed, "replay", *key))
    return [fresh[key] for key in order[:count]]
