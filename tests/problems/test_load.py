"""Loading problems: formats, columns, bad rows, splits."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from qstar.config import DataConfig, GeneratorConfig
from qstar.errors import UserError
from qstar.problems.load import HUB_DATASET, MAX_LINE, load_test, load_train_dev, without_steps
from qstar.problems.problem import Problem, problem_id

SAMPLE = Path(__file__).parents[1] / "data" / "gsm8k_sample"
ROWS = [
    {"question": f"Ann has {n} pears and buys {n + 1} more. How many has she?", "answer": f"{2 * n + 1}"}
    for n in range(40)
]


def write(folder: Path, rows: Sequence[object], name: str = "train.jsonl") -> DataConfig:
    """A folder with the rows, as a config with half of them in dev."""
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return DataConfig(source="file", path=str(folder), dev_percent=50)


def everything(config: DataConfig) -> dict[str, Problem]:
    train, dev = load_train_dev(config)
    return {problem.id: problem for problem in train + dev}


def refused(config: DataConfig, match: str, *parts: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_train_dev(config)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


# The sample


def test_gsm8k_sample() -> None:
    config = DataConfig(source="gsm8k", path=str(SAMPLE), dev_percent=20)
    problems = everything(config)
    tests = load_test(config)
    assert len(problems) == 30
    assert len(tests) == 10
    by_question = {p.question: p for p in [*problems.values(), *tests]}
    tulips = by_question["Gus plants 7 rows of 12 tulips. Rabbits eat 9 of them. How many tulips remain?"]
    assert tulips.steps == ("He plants 7*12 = 84 tulips.", "Then 84-9 = 75 tulips remain.")
    assert (tulips.answer, tulips.source, tulips.values, tulips.operations) == ("75", "gsm8k", None, None)
    assert tulips.id == problem_id(tulips.question)
    for start, answer in (("A city has", "1310000"), ("A shop earns", "-90"), ("A stadium", "21600")):
        assert [p.answer for q, p in by_question.items() if q.startswith(start)] == [answer]
    assert not any("<<" in step or "####" in step for p in by_question.values() for step in p.steps or ())


def test_sample_annotations_are_true() -> None:
    # The sample itself: every annotation recomputes and the last one is the answer.
    for file in ("train.jsonl", "test.jsonl"):
        for line in (SAMPLE / file).read_text().splitlines():
            answer = json.loads(line)["answer"]
            *steps, last = answer.splitlines()
            results = [re.findall(r"<<([^=]+)=([^>]+)>>", step) for step in steps]
            for expression, result in (pair for found in results for pair in found):
                assert calculate(expression) == Fraction(result), line
            assert Fraction(results[-1][-1][1]) == Fraction(re.sub(r"[#$, ]", "", last)), line


def calculate(expression: str) -> Fraction:
    """+, -, * and / from left to right, products first."""
    tokens = re.findall(r"(?:(?<=^)-)?[\d.]+|[-+*/]", expression)
    values, operators = [Fraction(tokens[0])], []
    for operator, text in zip(tokens[1::2], tokens[2::2], strict=True):
        number = Fraction(text)
        if operator == "*":
            values[-1] *= number
        elif operator == "/":
            values[-1] /= number
        else:
            operators.append(operator)
            values.append(number)
    for operator, value in zip(operators, values[1:], strict=True):
        values[0] += value if operator == "+" else -value
    return values[0]


# Formats


def test_jsonl_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c" / "main").mkdir(parents=True)
    jsonl = write(tmp_path / "a", ROWS)
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "b" / "train.parquet")
    for part, rows in enumerate((ROWS[:25], ROWS[25:])):
        name = tmp_path / "c" / "main" / f"train-{part:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    expected = load_train_dev(jsonl)
    for folder in ("b", "c"):
        assert load_train_dev(DataConfig(source="file", path=str(tmp_path / folder), dev_percent=50)) == expected
    single = DataConfig(source="file", path=str(tmp_path / "a" / "train.jsonl"), dev_percent=50)
    assert load_train_dev(single) == expected
    with pytest.raises(UserError, match=r"one file, read as train; put test\.jsonl"):
        load_test(single)


def test_blank_lines_byte_order_mark_and_spaces(tmp_path: Path) -> None:
    config = write(tmp_path, ["\ufeff", *ROWS[:10], "\n", "  \n", *ROWS[10:]])
    assert len(everything(config)) == len(ROWS)
    (tmp_path / "train.jsonl").unlink()
    spaced = write(tmp_path, [*ROWS, {"question": "  Tom has 1 pen.\nHow many?\t", "answer": " 1\n"}])
    assert everything(spaced)[problem_id("tom has 1 PEN. how many?")].question == "Tom has 1 pen.\nHow many?"


@pytest.mark.parametrize(
    ("answer", "number", "steps"),
    [
        ("12", "12", None),
        (12, "12", None),
        (-3, "-3", None),
        ("#### 1,234", "1234", None),
        ("He has 3*4 = <<3*4=12>>12.\n\n  So 12.  \n#### 12", "12", ("He has 3*4 = 12.", "So 12.")),
        ("Item #### 5 is not it.\n#### 7", "7", ("Item #### 5 is not it.",)),
    ],
)
def test_answers(tmp_path: Path, answer: Any, number: str, steps: tuple[str, ...] | None) -> None:
    config = write(tmp_path, [*ROWS, {"question": "This one?", "answer": answer}])
    problem = everything(config)[problem_id("This one?")]
    assert (problem.answer, problem.steps) == (number, steps)


def test_a_number_with_decimals_is_a_number(tmp_path: Path) -> None:
    config = write(tmp_path, [*ROWS, {"question": "This one?", "answer": 22.5}])
    assert Fraction(everything(config)[problem_id("This one?")].answer) == Fraction(45, 2)


def test_other_column_names(tmp_path: Path) -> None:
    rows = [{"problem": row["question"], "solution": row["answer"], "answer": "not this"} for row in ROWS]
    write(tmp_path, rows)
    config = DataConfig(
        source="file", path=str(tmp_path), dev_percent=50, question_column="problem", answer_column="solution"
    )
    assert {p.answer for p in everything(config).values()} == {row["answer"] for row in ROWS}


def test_a_missing_column_names_the_near_one_and_the_field_to_set(tmp_path: Path) -> None:
    write(tmp_path, [{"problems": "Q?", "answers": "1"}])
    refused(DataConfig(source="file", path=str(tmp_path)), "row 1", "no column 'question'", "data.question_column")
    config = DataConfig(source="file", path=str(tmp_path), question_column="problem", answer_column="answers")
    refused(config, "row 1", "no column 'problem'", "did you mean 'problems'?", "data.question_column")
    config = DataConfig(source="file", path=str(tmp_path), question_column="problems")
    refused(config, "row 1", "no column 'answer'", "did you mean 'answers'?", "data.answer_column")


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ("{broken\n", "one JSON object on each line"),
        ("[" * 200_000 + "\n", "one JSON object on each line"),
        ('{"question": "Q?", "answer": ' + "9" * 5000 + "}\n", "one JSON object on each line"),
        ('["Q?", "1"]\n', "write it as"),
        ("null\n", "write it as"),
        ({"question": "Q?"}, "no column 'answer'"),
        ({"question": "", "answer": "1"}, "fill it in or remove the row"),
        ({"question": " \n", "answer": "1"}, "fill it in or remove the row"),
        ({"question": "Q?", "answer": None}, "text or a number"),
        ({"question": "Q?", "answer": True}, "text or a number"),
        ({"question": ["Q?"], "answer": "1"}, "text or a number"),
        ({"question": "Q?", "answer": {"value": 1}}, "text or a number"),
        ({"question": "Q?", "answer": "about ten"}, "must hold a number"),
        ({"question": "Q?", "answer": "4 + 4 = 8\n#### eight"}, "a number after ####"),
        ({"question": "Q?", "answer": "####"}, "a number after ####"),
        ({"question": "Q?", "answer": float("nan")}, "must hold a number"),
        ({"question": "Q?", "answer": float("inf")}, "must hold a number"),
        ({"question": "Q\x00?", "answer": "1"}, "remove them"),
        ('{"question": "Q \\ud800?", "answer": "1"}\n', "remove them"),
    ],
)
def test_a_bad_row_is_named_with_the_fix(tmp_path: Path, row: Any, fix: str) -> None:
    refused(write(tmp_path, [*ROWS[:6], row, *ROWS[6:]]), r"train\.jsonl row 7\b", fix)


def test_an_overlong_line(tmp_path: Path) -> None:
    config = write(tmp_path, [ROWS[0], {"question": "Q" * MAX_LINE, "answer": "1"}])
    refused(config, "row 2 is longer than 1,000,000 bytes; put one JSON object on each line")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    config = write(tmp_path, ROWS[:3])
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b'{"question": "caf\xe9?", "answer": "1"}\n')
    refused(config, "row 4 is not UTF-8 text; save the file as UTF-8")


def test_a_bad_parquet_row(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "1"}, {"question": None, "answer": "2"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    refused(DataConfig(source="file", path=str(tmp_path)), r"train\.parquet row 2: 'question' is NoneType")


def test_missing_data(tmp_path: Path) -> None:
    refused(DataConfig(source="file"), "data.path is not set")
    refused(DataConfig(source="file", path=str(tmp_path / "nowhere")), "does not exist; give a folder")
    refused(DataConfig(source="file", path=str(tmp_path)), r"has no train\.jsonl or train\.parquet")
    config = write(tmp_path, ["\n"])
    refused(config, "holds no rows")
    (tmp_path / "notes.txt").write_text("x")
    refused(DataConfig(source="file", path=str(tmp_path / "notes.txt")), r"neither \.jsonl nor \.parquet")
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        load_test(config)


def test_without_the_hub() -> None:
    refused(DataConfig(source="gsm8k"), f"{HUB_DATASET} cannot be fetched from the hub", "go online or set data.path")


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str, *, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    train, dev = load_train_dev(DataConfig(source="gsm8k", dev_percent=50))
    assert len(train) + len(dev) == len(ROWS)
    assert asked == [(HUB_DATASET, "main", "train")]  # test was not touched


# Splits


def test_duplicates_are_removed_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shouted = [{**row, "question": row["question"].upper().replace(" ", "  ")} for row in ROWS[:5]]
    with caplog.at_level(logging.WARNING):
        problems = everything(write(tmp_path, [*ROWS, *shouted]))
    assert len(problems) == len(ROWS)
    assert {p.question for p in problems.values()} == {row["question"] for row in ROWS}  # the first wording stays
    assert "5 duplicate questions" in caplog.text


def test_dev_depends_on_the_question_alone(tmp_path: Path) -> None:
    train, dev = load_train_dev(write(tmp_path, ROWS))
    assert len(train) > 5
    assert len(dev) > 5
    assert not {p.id for p in train} & {p.id for p in dev}
    assert [p.question for p in dev] == [q for q in (r["question"] for r in ROWS) if q in {p.question for p in dev}]
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    for rows in (shuffled, ROWS[:25]):
        asked = {problem_id(row["question"]) for row in rows}
        _, other = load_train_dev(write(tmp_path, rows))
        assert {p.id for p in other} == {p.id for p in dev} & asked


def test_a_larger_dev_percent_only_adds_to_dev(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    sizes = []
    before: set[str] = set()
    for percent in (10, 25, 50):
        _, dev = load_train_dev(DataConfig(source="file", path=str(tmp_path), dev_percent=percent))
        ids = {p.id for p in dev}
        assert before <= ids
        before = ids
        sizes.append(len(ids))
    assert sizes[0] < sizes[2]


def test_a_split_without_problems_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path, ROWS[:1])
    with pytest.raises(UserError, match=r"none of the 1 problems fell into (train|dev).*data\.dev_percent"):
        load_train_dev(config)


def test_limits(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS, "test.jsonl")
    whole, dev = load_train_dev(DataConfig(source="file", path=str(tmp_path), dev_percent=50))
    config = DataConfig(source="file", path=str(tmp_path), dev_percent=50, train_limit=3, test_limit=4)
    assert load_train_dev(config) == (whole[:3], dev)
    assert [p.question for p in load_test(config)] == [row["question"] for row in ROWS[:4]]
    for field in ("train_limit", "test_limit"):
        with pytest.raises(UserError, match=f"data.{field} is 0; it must be null or at least 1"):
            (load_train_dev if field == "train_limit" else load_test)(
                DataConfig(source="file", path=str(tmp_path), dev_percent=50, **{field: 0})  # type: ignore[arg-type]
            )


def test_gold_solutions(tmp_path: Path) -> None:
    rows = [{**row, "answer": f"She has {row['answer']}.\n#### {row['answer']}"} for row in ROWS]
    write(tmp_path, rows)
    whole, dev = load_train_dev(DataConfig(source="file", path=str(tmp_path), dev_percent=50))
    assert all(p.steps for p in whole + dev)
    before: set[str] = set()
    for count in (0, 4, 9):
        config = DataConfig(source="file", path=str(tmp_path), dev_percent=50, gold_solutions=count)
        train, same_dev = load_train_dev(config)
        gold = {p.id for p in train if p.steps is not None}
        assert len(gold) == count
        assert before <= gold  # more gold solutions keep the ones before
        assert [without_steps(p) for p in whole] == [without_steps(p) for p in train]  # only the steps differ
        assert same_dev == dev
        before = gold
    with pytest.raises(UserError, match=r"data\.gold_solutions is -1"):
        load_train_dev(DataConfig(source="file", path=str(tmp_path), dev_percent=50, gold_solutions=-1))


def test_gold_solutions_of_the_generator_keep_the_values() -> None:
    config = DataConfig(gold_solutions=5, generator=GeneratorConfig(train=60, test=5))
    train, _ = load_train_dev(config)
    assert sum(p.steps is not None for p in train) == 5
    assert all(p.values is not None and p.values[-1] == p.answer for p in train)
