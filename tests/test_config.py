"""Strict configuration: what is refused and how, overrides, and the way to YAML and back."""

from __future__ import annotations

import ast
import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import qstar.config
from qstar.config import DataConfig, RunConfig, SftConfig
from qstar.config_load import check_ranges, from_dict, load_config, to_dict
from qstar.errors import UserError


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    (tmp_path / "config.yaml").write_text(text)
    return load_config(tmp_path / "config.yaml", overrides)


def refused(tmp_path: Path, text: str, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def fields(cls: Any = RunConfig, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, type) of every plain field of the config."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found += fields(hint, f"{prefix}{name}.")
        else:
            found.append((prefix + name, hint))
    return found


def test_defaults() -> None:
    assert load_config(None) == RunConfig()
    check_ranges(RunConfig())


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "# only a comment\n") == RunConfig()


def test_a_file_names_only_what_differs(tmp_path: Path) -> None:
    config = load(tmp_path, "name: mine\ndata: {source: gsm8k, generator: {seed: 7}}\neval: {budgets: [64, 128]}\n")
    assert config.directory == Path("runs/mine")
    assert config.data == dataclasses.replace(
        DataConfig(), source="gsm8k", generator=dataclasses.replace(DataConfig().generator, seed=7)
    )
    assert config.eval.budgets == (64, 128)
    assert config.sft == SftConfig()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serach: {budget: 4}", "unknown config key serach; did you mean search?"),
        ("search: {buget: 4}", "unknown config key search.buget; did you mean budget?"),
        ("data: {generator: {sed: 4}}", "unknown config key data.generator.sed; did you mean seed?"),
        ("sft: {zzz: 4}", "unknown config key sft.zzz; known: epochs, batch_size"),
        ("1: 2", "unknown config key 1; known: name"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(tmp_path: Path, text: str, message: str) -> None:
    refused(tmp_path, text, message)


@pytest.mark.parametrize("name", [name for name, _ in fields()])
def test_every_misspelt_field_is_refused_with_its_name(name: str) -> None:
    *section, leaf = name.split(".")
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{'.'.join([*section, leaf + 'x'])}=1"])
    assert f"unknown config key {name}x; did you mean {leaf}?" in str(caught.value)


WRONG = {int: "1.5", float: "many", bool: "1", str: "5"}


@pytest.mark.parametrize(("name", "hint"), fields())
def test_every_field_refuses_a_wrong_type(name: str, hint: Any) -> None:
    inner = [a for a in typing.get_args(hint) if a not in (type(None), Ellipsis)]
    text = "nonsense" if typing.get_origin(hint) is typing.Literal else WRONG[inner[0] if inner else hint]
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{name}={text}"])
    assert str(caught.value).startswith(f"{name} must be ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: true", "seed must be int, not True"),
        ("seed: '1'", "seed must be int, not '1'"),
        ("seed: 1.0", "seed must be int, not 1.0"),
        ("seed:", "seed must be int, not None"),
        ("name: [a]", "name must be str, not ['a']"),
        ("sft: {epochs: yes}", "sft.epochs must be float, not True"),
        ("sft: {epochs: .nan}", "sft.epochs must be a finite number, not nan"),
        ("sft: {learning_rate: .inf}", "sft.learning_rate must be a finite number, not inf"),
        ("sft: {learning_rate: 1e999}", "sft.learning_rate must be a finite number, not '1e999'"),
        ("sft: 5", "sft must be a mapping of fields, not 5"),
        ("sft: [1]", "sft must be a mapping of fields, not [1]"),
        ("sft:", "sft must be a mapping of fields, not None"),
        ("data: {source: hub}", "data.source must be one of generator, gsm8k, file, not 'hub'"),
        ("eval: {budgets: [64, many]}", "eval.budgets must be int, not 'many'"),
        ("eval: {budgets: {a: 1}}", "eval.budgets must be int, not {'a': 1}"),
        ("[1, 2]", "must hold a mapping"),
        ("just text", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("seed: 1\nname: a\nseed: 2", "key 'seed' twice"),
        ("sft: {epochs: 1, epochs: 2}", "key 'epochs' twice"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    refused(tmp_path, text, message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "-1"),
        ("data.dev_percent", "0"),
        ("data.dev_percent", "51"),
        ("data.generator.train", "9"),
        ("data.generator.test", "0"),
        ("data.generator.min_operations", "1"),
        ("data.generator.min_operations", "6"),
        ("data.generator.max_operations", "9"),
        ("data.generator.max_distractors", "-1"),
        ("data.generator.stories", "0"),
        ("data.generator.stories", "11"),
        ("policy.temperature", "0"),
        ("policy.temperature", "5.1"),
        ("policy.top_k", "0"),
        ("policy.max_step_tokens", "1"),
        ("policy.max_steps", "0"),
        ("policy.batch_rows", "0"),
        ("policy.cache_megabytes", "0"),
        ("sft.epochs", "0"),
        ("sft.batch_size", "0"),
        ("sft.learning_rate", "0"),
        ("sft.warmup", "1"),
        ("sft.weight_decay", "-0.1"),
        ("sft.checkpoint_steps", "0"),
        ("student.sft.epochs", "-1"),
        ("student.sft.batch_size", "0"),
        ("rollout.samples", "0"),
        ("value.epochs", "0"),
        ("search.budget", "0"),
        ("search.children", "0"),
        ("search.g_weight", "-0.5"),
        ("search.h_weight", "-1"),
        ("search.step_penalty", "-1"),
        ("search.smoothing", "-1"),
        ("search.beam_width", "0"),
        ("traces.per_problem", "0"),
        ("eval.budgets", "[]"),
        ("eval.budgets", "[64, 0]"),
        ("eval.strategies", "[]"),
    ],
)
def test_ranges(name: str, value: str) -> None:
    with pytest.raises(UserError, match="; it must be ") as caught:
        load_config(None, [f"{name}={value}"])
    named = str(caught.value).split()[0]
    assert named == name or (named, name) == ("data.generator.min_operations", "data.generator.max_operations")


def test_a_missing_file_or_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml does not exist"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


# Values that YAML writes in an unexpected way


def test_numbers_and_off_as_people_write_them(tmp_path: Path) -> None:
    config = load(tmp_path, "sft: {learning_rate: 1e-4, epochs: 3}\npolicy: {calculator: off}\nvalue: {layers: -2}\n")
    assert (config.sft.learning_rate, config.sft.epochs) == (1e-4, 3.0)
    assert isinstance(config.sft.epochs, float)
    assert config.policy.calculator == "off"
    assert config.value.layers == (-2,)


def test_null_is_none_where_a_field_allows_it(tmp_path: Path) -> None:
    config = load(tmp_path, "data: {path: null, train_limit:}\nrollout: {problems: ~}\n")
    assert (config.data.path, config.data.train_limit, config.rollout.problems) == (None, None, None)


# --set


def test_overrides_win_and_reach_every_depth(tmp_path: Path) -> None:
    text = "search: {budget: 64, children: 3}\n"
    config = load(
        tmp_path, text, "search.budget=256", "data.generator.seed=9", "name=b", "eval.budgets=[1, 2]", "search.budget=8"
    )
    assert (config.search.budget, config.search.children) == (8, 3)  # the last one wins, its neighbours stay
    assert (config.data.generator.seed, config.name, config.eval.budgets) == (9, "b", (1, 2))
    assert load_config(None, ["data.path=a=b"]).data.path == "a=b"
    assert load_config(None, ["data.path="]).data.path is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.budget", "must look like --set search.budget=1024"),
        ("=5", "must look like --set search.budget=1024"),
        ("seed.x=5", "unknown config key seed.x|seed must be int"),
        ("serach.budget=5", "unknown config key serach; did you mean search?"),
        ("search.budget=[", "is not a YAML value; put quotes around it"),
        ("search=5", "search must be a mapping of fields, not 5"),
        ("search.budget=0", "search.budget is 0; it must be at least 1"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert any(part in str(caught.value) for part in message.split("|"))


def test_an_override_inside_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set seed\.x: seed is not a section of the config"):
        load(tmp_path, "seed: 1", "seed.x=5")


def test_an_override_changes_one_section_of_two_that_share_an_anchor(tmp_path: Path) -> None:
    config = load(tmp_path, "sft: &shared {epochs: 3}\nstudent: {sft: *shared}\n", "sft.epochs=5")
    assert (config.sft.epochs, config.student.sft.epochs) == (5.0, 3.0)


# To YAML and back


def plain(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: plain(h) for name, h in typing.get_type_hints(hint).items()})
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(plain(args[0]), max_size=3).map(tuple)
    if args:
        return st.one_of([st.none() if a is type(None) else plain(a) for a in args])
    return {
        int: st.integers(-(2**70), 2**70),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(codec="utf-8", exclude_characters="\x85")),
    }[hint]


@settings(max_examples=25)
@given(plain(RunConfig))
def test_any_config_survives_dict_and_yaml(config: RunConfig) -> None:
    assert from_dict(RunConfig, to_dict(config)) == config
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_a_written_config_loads_as_it_was(tmp_path: Path) -> None:
    config = load_config(None, ["data.source=gsm8k", "eval.budgets=[7]", "student.layers=3", "policy.calculator=off"])
    assert load(tmp_path, yaml.safe_dump(to_dict(config))) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(RunConfig)]) | st.text(), inner)
        ),
        max_leaves=8,
    )
)
def test_any_data_gives_a_config_or_one_line(data: Any) -> None:
    message = ""
    try:
        check_ranges(from_dict(RunConfig, data))
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


def test_every_setting_says_what_it_does() -> None:
    tree = ast.parse(Path(qstar.config.__file__).read_text(encoding="utf-8"))
    silent = []
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for node, after in zip(section.body, [*section.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or ast.unparse(node.annotation).endswith("Config"):
                continue
            if not isinstance(after, ast.Expr):
                silent.append(f"{section.name}.{ast.unparse(node.target)}")
    assert not silent


def test_a_value_of_an_earlier_version_is_read_by_its_name_of_today(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("value: {path: true, path_features: checks}\n")
    assert load_config(tmp_path / "old.yaml").value.features == "checks"
    assert load_config(tmp_path / "old.yaml", ["value.features=none"]).value.features == "none"
    assert load_config(None, ["value.path=false"]).value.features == "none"
    with pytest.raises(UserError, match=r"value\.path"):
        load_config(None, ["value.path=3"])
