"""The dataset card of an export: where every row comes from and what was refused. Bytes depend on the content alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

import yaml

from qstar import __version__
from qstar.distill.formats import Format
from qstar.distill.gate import REASONS, TRL_MAX_LENGTH
from qstar.distill.select import Funnel
from qstar.markdown import table
from qstar.policy.prompt import render_prompt


@dataclass(frozen=True)
class Provenance:
    """How the traces were made.

    policy, q: content revisions of the policy and of the Q head (None: searched without). strategy, budget (policy
    tokens per problem), seed: of the search. grader: version of the grader. source: of the questions. licence: of the
    source, as a hub licence id. per_problem, require_equations, wordings, selection, tokens: of the selection. funnel:
    counts of the selection; it may still be filling while rows are written, since the card comes last.
    """

    policy: str
    q: str | None
    strategy: str
    budget: int
    seed: int
    grader: str
    source: str
    licence: str
    per_problem: int
    require_equations: bool
    wordings: int = 1
    selection: str = "informed"
    tokens: int | None = None
    funnel: Funnel | None = None


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    rows, problems: written. refused, refused_problems: rows and problems left out, by reason. longest: the longest
    sequence in tokens, None if no tokenizer was given. max_tokens: longer rows were refused.
    """

    format: str
    file_type: str
    rows: int
    problems: int
    refused: dict[str, int]
    refused_problems: dict[str, int]
    longest: int | None
    max_tokens: int | None


def render_card(report: ExportReport, kind: Format, provenance: Provenance, data_file: str | None) -> str:
    """The card as Markdown with a YAML head. data_file: what `load_dataset` shall read, None for a saved dataset."""
    head: dict[str, object] = {
        "license": provenance.licence,
        "language": ["en"],
        "tags": ["math", "reasoning", "synthetic", "qstar"],
        "task_categories": ["text-generation"],
    }
    if data_file:
        head["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": data_file}]}]
    funnel = provenance.funnel
    origin = {f.name: getattr(provenance, f.name) for f in fields(provenance) if f.name != "funnel"}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# Reasoning traces: {report.format}\n",
        f"{report.rows} rows from {report.problems} problems, for {kind.trainer}. Each solution was written by a "
        "language model and graded by exact arithmetic.\n",
        "## Columns\n",
        table(("column", "type"), {field.name: field.type for field in kind.schema}),
        "## Provenance\n",
        table(("field", "value"), {**origin, "qstar": __version__}),
    ]
    if funnel:
        parts += [
            "## Selection\n",
            table(("stage", "count"), asdict(funnel)),
        ]
    parts += ["## Refused\n", _refused(report), "## Length\n", _length(report), "## Use\n", _USE[report.format]]
    return "\n".join(parts)


def _refused(report: ExportReport) -> str:
    rows, problems = (
        {reason: counts.get(reason, 0) for reason in REASONS} for counts in (report.refused, report.refused_problems)
    )
    return table(("reason", "rows", "problems"), rows, problems)


def _length(report: ExportReport) -> str:
    if report.longest is None:
        return (
            "Lengths were not checked, as no tokenizer was given. TRL's trainers cut sequences at `max_length` "
            f"(default {TRL_MAX_LENGTH}) without a word: set `max_length=None` or a number no row exceeds.\n"
        )
    return (
        f"The longest sequence has {report.longest} tokens, prompt and end-of-text token included; rows above "
        f"{report.max_tokens} were refused. Train with `max_length` of at least {report.longest}.\n"
    )


_PROMPT = f"The prompt is `{json.dumps(render_prompt('{question}'))}`. "
_END = "The trainer adds the end-of-text token. "
_WEIGHT = (
    "`weight` is below 1 for problems that the policy always solves. `advantages` has, per line of the solution, its Q "
    "minus the mean Q of the steps sampled in its place (null where none is known). SFTTrainer ignores both.\n"
)
_USE = {
    "sft": _PROMPT + _END + _WEIGHT,
    "chat": "One user and one assistant turn. " + _WEIGHT,
    "preference": _PROMPT
    + "Rows of kind `step` compare two next steps after the same steps; `margin` is the difference of their Q values, "
    "`advantage` that of the chosen step against the mean of all alternatives sampled there. "
    "Rows of kind `solution` compare whole solutions. DPOTrainer adds the end-of-text token to both sides, after a "
    "single step too: train on one kind, or remove that token for steps.\n",
    "kto": _PROMPT
    + _END
    + "At most as many wrong solutions as kept ones per problem. Shuffle before training: KTOTrainer estimates its KL "
    "term from neighbouring rows, and here these belong to one problem.\n",
    "stepwise": _PROMPT
    + "Steps are joined by a newline. A label is true if some trace with the same chain of steps up to here is "
    "correct.\n",
    "values": _PROMPT
    + "As stepwise, with V after each step as the Q head read it (null where none was read), and how many traces "
    "have the same chain of steps up to here (`samples`) and are correct (`correct`). Traces found by search are not "
    "independent samples.\n",
}
