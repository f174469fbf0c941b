"""The configuration: frozen dataclasses. `qstar.config_load` reads them from YAML and checks them.

A YAML file names only what differs from the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class GeneratorConfig:
    """Grade-school word problems made from a seed (`data.source: generator`)."""

    train: int = 4000
    """Number of training problems before the dev split is taken out."""
    test: int = 200
    """Number of test problems, drawn from a separate seed stream."""
    min_operations: int = 2
    """Fewest operations in a solution (2 to 8)."""
    max_operations: int = 5
    """Most operations in a solution (2 to 8)."""
    max_distractors: int = 1
    """Most irrelevant quantities in a question."""
    stories: int = 10
    """Number of settings (market, collection, bakery, ...), each with its own words; from 1 to 10."""
    seed: int = 1
    """Seed of the problems; independent of the run's seed."""


@dataclass(frozen=True)
class DataConfig:
    """Where problems come from and how they are split."""

    source: Literal["generator", "gsm8k", "file"] = "generator"
    """generator: made here; gsm8k: the hub's openai/gsm8k, or `path`; file: JSONL or Parquet files in `path`."""
    path: str | None = None
    """A folder with train.jsonl and test.jsonl (or .parquet), or null for the hub."""
    question_column: str = "question"
    """Column that holds the question (source: gsm8k and file)."""
    answer_column: str = "answer"
    """Column that holds the answer; text before `####` is read as the gold steps."""
    train_limit: int | None = None
    """Use at most this many training problems."""
    test_limit: int | None = None
    """Use only the first so many test problems."""
    dev_percent: int = 7
    """Percent of the training problems set aside for dev by a hash of the question."""
    gold_solutions: int | None = None
    """Training problems whose gold steps may be learned from; the others keep only their final answer."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)


@dataclass(frozen=True)
class ScratchConfig:
    """Shape of a small Llama model trained from nothing (`policy.init: scratch`)."""

    hidden_size: int = 192
    """Width of the hidden states; an even multiple of heads."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 6
    """Attention heads."""
    kv_heads: int = 2
    """Heads of keys and values, shared by groups of attention heads."""
    intermediate_size: int = 512
    """Width inside the feed-forward layers."""
    vocab_size: int = 1024
    """Size of the tokenizer trained on the training problems."""
    max_positions: int = 512
    """Longest prompt and solution together, in tokens."""


@dataclass(frozen=True)
class PolicyConfig:
    """The policy language model and how it writes steps."""

    init: str = "scratch"
    """scratch, a hub id, or a local checkpoint folder."""
    revision: str | None = None
    """Revision of a hub id."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format for sampling and scoring."""
    temperature: float = 1.0
    """Sampling temperature of rollouts and search."""
    top_k: int = 64
    """Sample among the k most likely tokens."""
    max_step_tokens: int = 48
    """A step longer than this is cut and dropped."""
    max_steps: int = 16
    """A solution with more steps is cut and never correct."""
    calculator: Literal["off", "assist", "prune"] = "assist"
    """assist: compute the number after `expression =`; prune: drop steps with a false equation; off: neither."""
    batch_rows: int = 128
    """Continuations decoded at once."""
    cache_megabytes: int = 4096
    """Budget for all keys and values: rows in work take up to half, the prefixes they read a quarter, cached ones the
    rest."""
    backend: str | None = None
    """What samples the steps in this process: vllm, which must be installed, or null for the engine of this package."""
    remote: str | None = None
    """URL of an OpenAI-compatible server that samples the steps, such as http://127.0.0.1:8000/v1 (null: this machine).
    Its API key is read from the environment variable QSTAR_API_KEY."""
    remote_model: str | None = None
    """Name of the policy on that server."""
    remote_calls: int = 32
    """Calls to the server at once."""


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning, of the teacher and of students, through TRL."""

    epochs: float = 2.0
    """Passes over the training examples; parts of one are fine."""
    batch_size: int = 32
    """Sequences per optimizer step and device."""
    learning_rate: float = 4e-4
    """Peak rate; cosine schedule."""
    warmup: float = 0.05
    """Share of the steps spent warming up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains bf16 weights with float32 master copies."""
    max_tokens: int | None = None
    """Leave out examples longer than this, prompt included (null: the model's context); they are counted."""
    question_loss: bool = False
    """Also learn to predict the question: a model from nothing learns there to find and repeat names and numbers."""
    compile: bool = False
    """torch.compile the model: pays off on runs of more than some minutes."""
    checkpoint_steps: int = 200
    """Optimizer steps between resumable checkpoints."""


@dataclass(frozen=True)
class RolloutConfig:
    """Solutions sampled from the policy; the labels of the Q head come from them."""

    problems: int | None = None
    """Training problems to roll out (null: all)."""
    samples: int = 8
    """Solutions per problem."""
    dev_problems: int | None = None
    """Dev problems to roll out, for calibration (null: all)."""
    dev_samples: int = 8
    """Solutions per dev problem."""
    max_tokens: int = 320
    """Cap on one solution."""
    allocation: Literal["uniform", "uncertain"] = "uniform"
    """uniform: as many samples for every training problem; uncertain: half of them, then the other half where the share
    of right ones is uncertain, part of it as continuations of steps after which outcomes differ."""


@dataclass(frozen=True)
class ValueConfig:
    """The Q-value head."""

    trunk: Literal["frozen", "separate", "lora", "joint"] = "frozen"
    """frozen: a head on the policy's own hidden states (free while decoding); separate: a copy of the policy,
    fully trained as a value model; lora: a copy of which low-rank adapters are trained and then merged; joint: as
    separate, and the copy also goes on learning to write the correct solutions."""
    lora_rank: int = 16
    """Rank of the adapters (`trunk: lora`)."""
    joint_weight: float = 0.1
    """Weight of the language-model loss (`trunk: joint`)."""
    target: Literal["outcome", "monte_carlo", "hard", "td", "tree_mean", "tree_max"] = "outcome"
    """What V after a step is trained on. outcome: was the solution right; monte_carlo: share of right ones among the
    rollouts through the same steps; hard: was any of them right; td: lambda-returns of the values of a first fit;
    tree_mean, tree_max: backups over the tree that the rollouts form, and over stored search trees."""
    td_lambda: float = 0.9
    """lambda of `target: td`, from 0 (the next step's value) to 1 (the outcome)."""
    ranking: float = 0.3
    """Weight of the ranking term, between right and wrong solutions of one problem. 0.3 against 0 raised the AUC within
    problems of a trained trunk by 0.01 (last step) to 0.03 (first step) on synthetic traces; 1 added nothing."""
    balance: float = 0.0
    """How far right and wrong solutions of a problem are brought to equal total weight: 0 not at all, 1 fully, which
    makes hard problems look solvable: ECE rose from 0.02 to 0.08 on synthetic traces."""
    layers: tuple[int, ...] = (-1,)
    """Hidden states read, by layer (-1 = last)."""
    features: Literal["none", "logprobs", "checks", "all"] = "all"
    """What is read beside hidden states. logprobs: how probable the policy found the steps; checks: exact checks of
    their equations and numbers; all: both."""
    problems: int | None = None
    """Learn from the rollouts of the first so many problems (null: all); for a learning curve."""
    hidden_size: int = 256
    """Width of the head's hidden layer."""
    epochs: float = 4.0
    """Passes over the states of the rollouts."""
    batch_size: int = 64
    """Rollouts per optimizer step."""
    learning_rate: float = 1e-3
    """Peak rate; cosine schedule."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""


@dataclass(frozen=True)
class SearchConfig:
    """A search over steps."""

    strategy: str = "astar"
    """One of the strategies of `qstar search --help`."""
    budget: int = 1024
    """Policy tokens generated per problem."""
    children: int = 8
    """Candidates sampled per expansion."""
    g_weight: float = 1.0
    """f = g_weight * g + h_weight * h; 1 is the sound form, 0 is greedy best-first."""
    h_weight: float = 1.0
    """Weight of h = -log V in f; above 1 trades optimality for a quicker solution."""
    step_penalty: float = 0.0
    """Added to each step's cost (nats)."""
    smoothing: float = 0.5
    """Pseudo-count of the estimate of pi(action | state) from sample shares."""
    step_probability: Literal["canonical", "text"] = "canonical"
    """canonical: share of the sampled candidates with the same meaning; text: the wording's own probability."""
    max_depth: int = 16
    """A state with this many steps is not expanded."""
    selection: Literal["best", "majority", "value", "mass"] = "value"
    """How the answer is chosen among the terminal traces."""
    beam_width: int = 4
    """Width of step beam, DVTS subtrees and REBASE."""
    exploration: float = 1.5
    """PUCT constant of MCTS."""
    rebase_temperature: float = 0.2
    """Temperature of the softmax over V by which REBASE shares samples."""


@dataclass(frozen=True)
class TracesConfig:
    """Building verified traces on training problems whose answer is known."""

    problems: int | None = None
    """Training problems to search (null: all)."""
    budget: int = 512
    """Policy tokens per problem."""
    per_problem: int = 4
    """Stop at this many verified traces; also the cap on kept traces."""
    include_rollouts: bool = True
    """Verified rollouts are candidates too."""
    require_equations: bool = True
    """Keep only traces whose every equation recomputes."""
    wordings: int = 1
    """Keep so many wordings of one chain of equations: the most probable one, then the least alike."""
    selection: Literal["informed", "uniform", "random"] = "informed"
    """informed: problems that the policy always solves count less, in the draw for `tokens` or else in the loss;
    uniform: every problem's first trace before any second one; random: all traces alike, without a cap."""
    tokens: int | None = None
    """Solution tokens in the data set, at most (null: all kept traces)."""


@dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimization (`improve.method: grpo`)."""

    samples: int = 8
    """Solutions per question in a group."""
    questions: int = 8
    """Questions per optimizer step."""
    learning_rate: float = 1e-5
    """Constant rate."""
    max_tokens: int = 160
    """Cap on one solution."""
    tokens: int | None = None
    """Stop after so many generated tokens (null: as many as this iteration's rollouts and searches generated)."""


@dataclass(frozen=True)
class ImproveConfig:
    """Making a better policy from an iteration's verified traces."""

    iterations: int = 0
    """How often to roll out, fit Q, search and improve the policy, at most; the loop ends when dev gets no better.
    0: the policy of the fine-tuning stays."""
    method: Literal["expert", "advantage", "grpo"] = "expert"
    """expert: fine-tune on the verified traces; advantage: on the complete solutions of the search trees, right or
    wrong, each step weighted by exp(advantage); grpo: TRL's outcome-only GRPO, as a reference."""
    gold: bool = True
    """Also on the gold solutions."""
    replay: float = 0.5
    """Share of the traces that are from earlier iterations, if there are so many."""
    dev_problems: int | None = None
    """Dev problems on which the policies are compared (null: all)."""
    sft: SftConfig = field(default_factory=lambda: SftConfig(epochs=1.0, learning_rate=2e-4))
    grpo: GrpoConfig = field(default_factory=GrpoConfig)


@dataclass(frozen=True)
class OnPolicyConfig:
    """On-policy distillation after the fine-tuning (`student.method: on-policy`)."""

    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Questions per step; the student answers each once."""
    learning_rate: float = 1e-4
    """Peak rate; cosine schedule."""
    max_tokens: int = 128
    """Cap on one answer."""
    divergence: float = 1.0
    """0: forward KL; 1: reverse KL; between: generalized Jensen-Shannon divergence."""


@dataclass(frozen=True)
class StudentConfig:
    """The cheaper model."""

    init: str = "scratch"
    """scratch, drop-layers (the teacher's base with layers dropped evenly), a hub id or a local folder."""
    scratch: ScratchConfig = field(
        default_factory=lambda: ScratchConfig(hidden_size=128, heads=4, intermediate_size=352)
    )
    layers: int | None = None
    """Layers kept with drop-layers."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank on every linear layer and merge them in the end (null: all weights)."""
    loss: Literal["uniform", "advantage", "frequency"] = "uniform"
    """uniform: every token alike; advantage: steps of traces by exp(advantage); frequency: rare tokens more."""
    method: Literal["sft", "on-policy"] = "sft"
    """sft: learn from the examples; on-policy: then also match the teacher on answers of the student's own. The
    teacher's tokenizer must be the student's."""
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    sft: SftConfig = field(default_factory=SftConfig)


@dataclass(frozen=True)
class EvalConfig:
    """The final comparison, the only reader of the test split."""

    split: Literal["dev", "test"] = "test"
    """The problems compared on."""
    problems: int | None = None
    """Use only the first so many problems."""
    strategies: tuple[str, ...] = ("greedy", "majority", "best_of_n", "astar")
    """Names of `qstar search --help`, run on the policy; students are judged by their greedy answers."""
    budgets: tuple[int, ...] = (512,)
    """Policy tokens per problem."""


@dataclass(frozen=True)
class RunConfig:
    """One run of the whole loop."""

    name: str = "run"
    """Name of the run's folder."""
    out: str = "runs"
    """Folder that holds run folders."""
    seed: int = 0
    """Seed of weights, order and sampling; generated problems have their own."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Experiment tracker; the figures are also in `metrics.jsonl` of every stage."""
    data: DataConfig = field(default_factory=DataConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return Path(self.out) / self.name
