"""Configurations from YAML and from plain data, with `--set a.b=c` overrides, and back.

Unknown keys, keys given twice, wrong types and values out of range are refused with the dotted name of the field and,
for a typo, the nearest field that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml

from qstar.config import RunConfig
from qstar.errors import UserError

T = TypeVar("T")

# PyYAML reports a bad value, such as an impossible date, by whatever its constructor for that type happens to raise.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


def load_config(path: str | Path | None, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (or only the defaults) and apply `a.b=c` overrides.

    Raises UserError for a missing file, bad YAML, an unknown key, a wrong type or a value out of range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _StrictLoader)
        except FileNotFoundError:
            raise UserError(
                f"config file {path} does not exist; `ls configs/` shows the ones that come with qstar"
            ) from None
        except OSError as error:
            raise UserError(f"config file {path} cannot be read: {error.strerror}") from None
        except _YAML_ERRORS as error:
            raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(loaded, dict | None):
            raise UserError(f"config file {path} must hold a mapping such as `data: {{source: gsm8k}}`")
        data = loaded or {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"--set {override!r} must look like --set search.budget=1024")
        target = data
        *parents, leaf = name.split(".")
        for parent in parents:
            section = target.get(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {name}: {parent} is not a section of the config")
            # A copy, because two sections of a YAML file can be one object (anchor and alias).
            target[parent] = section = dict(section)
            target = section
        try:
            target[leaf] = yaml.safe_load(text)
        except _YAML_ERRORS:
            raise UserError(f"--set {name}: {_shown(text)} is not a YAML value; put quotes around it") from None
    if isinstance(value := data.get("value"), dict):
        data["value"] = renamed(value)
    config = from_dict(RunConfig, data)
    check_ranges(config)
    return config


def renamed(fields: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Fields of `value` that an earlier version wrote, under today's name: `path` and `path_features` are `features`.

    where: what their names start with, such as "value." in the inputs of a stage. A field of today's name wins.
    """
    read, part = f"{where}path", f"{where}path_features"
    if not isinstance(fields.get(read), bool):
        return fields
    features = fields.get(part, "all") if fields[read] else "none"
    return {f"{where}features": features, **{name: v for name, v in fields.items() if name not in (read, part)}}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError for a repeated key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build a config dataclass from plain data, strictly. Raises UserError naming the dotted field."""
    if not isinstance(data, dict):
        raise UserError(f"{where or 'the config'} must be a mapping of fields, not {_shown(data)}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            name = _shown(str(key))[1:-1]
            dotted = f"{where}.{name}" if where else name
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(hints)}"
            raise UserError(f"unknown config key {dotted}; {hint}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}" if where else key) for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false.
        value = "off" if value is False and "off" in args else value
        if value not in args:
            raise UserError(f"{where} must be one of {', '.join(map(str, args))}, not {_shown(value)}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(args[0], item, where) for item in items)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # Text, because YAML 1.1 reads 1e-4 (no dot) as such.
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where} must be a finite number, not {_shown(value)}")
        return number
    if type(value) is not hint:
        raise UserError(f"{where} must be {hint.__name__}, not {_shown(value)}")
    return value


class _Short(reprlib.Repr):
    """Short text of any value: aliases in YAML can make one as large as they like."""

    def repr_int(self, x: int, level: int) -> str:
        """The number, or its size where Python refuses to write it out."""
        return super().repr_int(x, level) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


def _shown(value: Any) -> str:
    short = _Short()
    short.maxlevel, short.maxstring = 2, 80
    return short.repr(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data for YAML or JSON; `from_dict` reads it back unchanged."""
    return {
        f.name: to_dict(v)
        if dataclasses.is_dataclass(v := getattr(config, f.name))
        else list(v)
        if isinstance(v, tuple)
        else v
        for f in dataclasses.fields(config)
    }


_SFT = ("sft", "improve.sft", "student.sft")

_LEAST: dict[int, tuple[str, ...]] = {
    10: ("data.generator.train",),
    2: ("policy.max_step_tokens", "improve.grpo.samples"),
    1: (
        "data.generator.test",
        *(f"policy.{name}" for name in ("top_k", "max_steps", "batch_rows", "cache_megabytes", "remote_calls")),
        "rollout.samples",
        "value.problems",
        "value.lora_rank",
        *(f"search.{name}" for name in ("budget", "children", "beam_width")),
        *(f"traces.{name}" for name in ("per_problem", "wordings", "tokens")),
        *(f"improve.grpo.{name}" for name in ("questions", "max_tokens", "tokens")),
        *(f"student.{name}" for name in ("lora_rank", "on_policy.steps", "on_policy.batch_size")),
        "student.on_policy.max_tokens",
        *(f"{sft}.{name}" for sft in _SFT for name in ("batch_size", "checkpoint_steps")),
    ),
    0: (
        "data.generator.max_distractors",
        "improve.iterations",
        *(f"value.{name}" for name in ("ranking", "joint_weight")),
        *(f"search.{name}" for name in ("g_weight", "h_weight", "step_penalty", "smoothing")),
        *(f"{sft}.weight_decay" for sft in _SFT),
    ),
}
"""Fields by their smallest value; null is fine where a field may be null."""

_ABOVE_ZERO = (
    "value.epochs",
    "improve.grpo.learning_rate",
    "student.on_policy.learning_rate",
    *(f"{sft}.{name}" for sft in _SFT for name in ("epochs", "learning_rate")),
)


def check_ranges(config: RunConfig) -> None:
    """Raise UserError for a value no run can use."""
    c = config
    generator, divergence = c.data.generator, c.student.on_policy.divergence
    operations = 2 <= generator.min_operations <= generator.max_operations <= 8
    budgets = bool(c.eval.budgets) and min(c.eval.budgets) >= 1
    remote, local = c.policy.remote, c.policy.remote is None
    own = local and c.policy.backend is None
    rules: list[tuple[str, bool, str]] = [
        ("seed", 0 <= c.seed < 2**63, "from 0 to 2**63 - 1"),
        ("data.dev_percent", 1 <= c.data.dev_percent <= 50, "from 1 to 50"),
        ("data.generator.min_operations", operations, "2 <= min <= max <= 8"),
        ("data.generator.stories", 1 <= generator.stories <= 10, "from 1 to 10"),
        ("policy.temperature", 0 < c.policy.temperature <= 5, "above 0 and at most 5"),
        ("policy.remote", local or _is_server(remote), "http://HOST:PORT/v1 or https://HOST/v1, without a password"),
        ("policy.remote_model", local == (c.policy.remote_model is None), "given with policy.remote, and only then"),
        (
            "policy.calculator",
            own or c.policy.calculator != "assist",
            "off or prune with policy.remote or policy.backend, which let no numbers be put in place while they sample",
        ),
        (
            "policy.backend",
            c.policy.backend in (None, "vllm" if local else None),
            "vllm, or null; null with policy.remote",
        ),
        ("improve.replay", 0 <= c.improve.replay < 1, "0 or more and below 1"),
        ("value.td_lambda", 0 <= c.value.td_lambda <= 1, "from 0 to 1"),
        ("value.balance", 0 <= c.value.balance <= 1, "from 0 to 1"),
        ("student.on_policy.divergence", 0 <= divergence <= 1, "from 0 to 1"),
        ("eval.budgets", budgets, "one or more budgets of at least 1"),
        ("eval.strategies", bool(c.eval.strategies), "one or more strategies"),
        *((f"{name}.warmup", 0 <= _field(c, f"{name}.warmup") < 1, "0 or more and below 1") for name in _SFT),
        *((name, _field(c, name) > 0, "above 0") for name in _ABOVE_ZERO),
    ]
    for least, names in _LEAST.items():
        rule = f"at least {least}" if least else "0 or more"
        rules += [(name, _field(c, name) is None or _field(c, name) >= least, rule) for name in names]
    for name, fine, rule in rules:
        if not fine:
            raise UserError(f"{name} is {_shown(_field(c, name))}; it must be {rule}")


def with_policy(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration with other fields of `policy`; None keeps a field. Raises UserError for a wrong value."""
    given = {name: value for name, value in changes.items() if value is not None}
    changed = dataclasses.replace(config, policy=dataclasses.replace(config.policy, **given))
    check_ranges(changed)
    return changed


def _is_server(url: str | None) -> bool:
    try:
        parts = urlsplit(url or "")
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:  # a port that is no number
        return False


def _field(config: RunConfig, name: str) -> Any:
    """The value of a dotted field."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
