"""Typed YAML: every mistake is told with its path, its value and what is allowed."""

import pickle
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from raysys.config import (
    Settings,
    dump_yaml,
    find_config,
    load_settings,
    load_yaml,
    parse_settings,
)
from raysys.errors import UserError, missing_extra
from raysys.ingest.rule_settings import RuleSettings


class Csv(Settings):
    kind: Literal["csv"] = "csv"
    separator: str = ","


class Parquet(Settings):
    kind: Literal["parquet"] = "parquet"
    columns: list[str] = []


class Inner(Settings):
    folds: int = Field(2, ge=1)
    half_life: float = 28.0


class Group(Settings):
    members: Annotated[tuple[Inner, ...], Field(min_length=1)]
    numbers: Annotated[frozenset[int], Field(min_length=2)] = frozenset({1, 2})
    ends: Annotated[tuple[int, ...], Field(min_length=2)] = (1, 2)

    @model_validator(mode="after")
    def _sound(self) -> "Group":
        if sum(inner.folds for inner in self.members) > 9:
            raise ValueError("more than nine folds")
        return self


class Groups(Settings):
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    source: Annotated[Csv | Parquet, Field(discriminator="kind")] = Csv()
    either: Csv | Parquet | None = None


def problem(content: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_settings(Outer, content, where="shop.yaml")
    return str(error.value)


def test_a_good_file_gives_frozen_settings(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_text("name: shop\ninner: {folds: 3}\nsource: {kind: parquet}\n")
    settings = load_settings(Outer, file)
    assert (settings.inner.folds, settings.source) == (3, Parquet())
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
        ({"name": "x", "inner": {"fold": 1}}, "inner.fold: unknown key; did you mean 'folds'?"),
        ({"name": "x", "many": [{}, {"halflife": 1}]}, "many.1.halflife: unknown key; did you"),
        ({"name": "x", "by_name": {"a": {"foldz": 1}}}, "by_name.a.foldz: unknown key; did you"),
        (
            {"name": "x", "source": {"kind": "csv", "seperator": ";"}},
            "source.csv.seperator: unknown key; did you mean 'separator'? "
            "(allowed: kind, separator)",
        ),
        ({"name": "x", "either": {"colums": []}}, "did you mean 'columns'?"),
        ({"name": "x", "inner": {"folds": 0}}, "inner.folds: 0: input should be greater than or"),
        ({"name": "x", "inner": {"folds": "two"}}, "inner.folds: 'two': "),
        ({"name": "x", "source": {"kind": "xml"}}, "'csv', 'parquet'"),
        ({}, "name: required, but missing"),
        ({"name": "x" * 500, "inner": 3}, "inner: 3: "),
    ],
)
def test_what_is_wrong_is_told_with_its_path(content, told):
    text = problem(content)
    assert text.startswith("shop.yaml: ")
    assert told in text


def test_every_mistake_is_told_at_once():
    text = problem({"nmae": 1, "inner": {"folds": 0, "x": 1}})
    assert [line.strip().partition(":")[0] for line in text.splitlines()] == [
        "shop.yaml",
        "inner.folds",
        "inner.x",
        "nmae",
    ]


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([{"members": [{"folds": 10}]}], ["groups.0: more than nine folds"]),
        ([{"members": [{"folds": 0}]}], ["groups.0.members.0.folds: 0: input should be"]),
        ([], ["groups: []: tuple should have at least 1 item"]),
        (
            [{"members": []}, {"members": [{}]}],
            ["groups.0.members: []: tuple should have at least 1 item"],
        ),
        # what is too short as written is told beside what is wrong with the rest of it
        (
            [{"members": [{}], "ends": ["a"]}],
            ["groups.0.ends.0: 'a': input should be", "groups.0.ends: ['a']: tuple should have"],
        ),
        (
            [{"members": [{}], "numbers": [1, 1]}],
            ["groups.0.numbers: [1, 1]: frozenset should have at least 2"],
        ),
    ],
)
def test_a_list_whose_members_are_wrong_is_not_called_short_as_well(groups, told):
    with pytest.raises(UserError) as error:
        parse_settings(Groups, {"groups": groups}, where="x.yaml")
    lines = [line.strip() for line in str(error.value).removeprefix("x.yaml: ").splitlines()]
    assert len(lines) == len(told), lines
    for line, beginning in zip(sorted(lines), sorted(told), strict=True):
        assert line.startswith(beginning)


def test_a_long_value_is_cut():
    assert len(problem({"name": ["x"] * 1000})) < 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [1, 2", "not valid YAML at line 1"),
        ("a: 1\n\tb: 2", "not valid YAML at line 2"),
        ("- a\n- b\n", "a mapping is expected, found list"),
        ("only words", "a mapping is expected, found str"),
        ("name: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 1\nuntil: 2024-06-31\n", "at line 2: '2024-06-31': day is out of range"),
        ("a: {days: [2024-06-30,\n 2024-13-01]}\n", "at line 2: '2024-13-01': month must be"),
        ("a: 1\nb: 2\n'a': 3\n", "at line 3: the key 'a' is there twice"),
        ("a:\n  - b: {c: 1, c: 1}\n", "at line 2: the key 'c' is there twice"),
    ],
)
def test_what_is_not_a_mapping_of_yaml_is_refused(tmp_path, text, told):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=told):
        load_yaml(file)


def test_merged_keys_may_be_overridden(tmp_path):
    file = tmp_path / "merged.yaml"
    text = """
    first: &first {lr: 0.1, depth: 3}
    second: &second {<<: *first, depth: 4}
    third: {<<: *second, depth: 5, day: 2024-06-30}
    fourth: {<<: [*first, *second], lr: 0.2}
    """
    file.write_text(text)
    content = load_yaml(file)
    assert content == yaml.safe_load(text)
    assert content["third"]["depth"] == 5 and content["third"]["lr"] == 0.1


def test_off_is_a_word_and_true_is_none(tmp_path):
    class Switches(Settings):
        action: Literal["off", "on"]
        names: dict[str, str]
        light: bool = False
        heavy: bool = False

    file = tmp_path / "switches.yaml"
    file.write_text("action: off\nnames: {no: Norway, trueish: yes}\nlight: yes\nheavy: TRUE\n")
    assert load_yaml(file)["heavy"] is True
    settings = load_settings(Switches, file)
    assert (settings.action, settings.names) == ("off", {"no": "Norway", "trueish": "yes"})
    assert settings.light is settings.heavy is True
    file.write_text("action: off\nnames: {}\nlight: On\nheavy: off\n")
    settings = load_settings(Switches, file)
    assert settings.light is True and settings.heavy is False
    file.write_text("rules: {bots: {action: off}}")
    rules = parse_settings(RuleSettings, load_yaml(file)["rules"], where="ingest.yaml")
    assert rules.bots.action == "off"


def test_ids_and_times_of_day_are_no_numbers(tmp_path):
    file = tmp_path / "numbers.yaml"
    file.write_text(
        "words: [12:30, 1:2:3.5, 00123, -01, 1_2e3, 0b11, 0o17, e5, 1e, '7']\n"
        "wholes: [0, -7, +7, 1_000, 0x1F]\n"
        "parts: [0.5, .5, 1., 1e-4, 2E+3, -1.5e3, -.inf]\n"
    )
    content = load_yaml(file)
    assert content["words"] == [
        "12:30",
        "1:2:3.5",
        "00123",
        "-01",
        "1_2e3",
        "0b11",
        "0o17",
        "e5",
        "1e",
        "7",
    ]
    assert content["wholes"] == [0, -7, 7, 1000, 31]
    assert all(isinstance(each, int) for each in content["wholes"])
    assert content["parts"] == [0.5, 0.5, 1.0, 1e-4, 2e3, -1500.0, float("-inf")]
    assert all(isinstance(each, float) for each in content["parts"])


WORDS = st.text("0123456789_:.eExXaAfFnoyNOY+-~ ", max_size=8)


@given(st.dictionaries(WORDS, WORDS | st.integers() | st.floats(allow_nan=False) | st.booleans()))
def test_what_is_written_is_read_again_here_and_elsewhere(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(dump_yaml(content), encoding="utf-8")
    for read in (load_yaml(file), yaml.safe_load(file.read_text(encoding="utf-8")) or {}):
        assert read == content
        assert {k: type(v) for k, v in read.items()} == {k: type(v) for k, v in content.items()}


def test_what_is_not_utf8_is_refused_with_its_place(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 9"):
        load_yaml(file)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_a_configuration_is_a_file_or_a_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("{}")
    assert find_config(file, "features") == file
    assert find_config("complete_journey", "features").name == "features.yaml"
    assert find_config("tune_configs/lightgbm_ranker.yaml", "tune").is_file()
    with pytest.raises(UserError, match="no such configuration: 'nothing'") as error:
        find_config("nothing", "features")
    assert "complete_journey" in error.value.mend
    assert find_config("two_tower", "tune").name == "two_tower.yaml"
    with pytest.raises(UserError) as error:
        find_config("nothing", "deploy")
    assert "serve_configs/local.yaml" in error.value.mend


def test_a_users_mistake_crosses_processes_whole():
    error = pickle.loads(pickle.dumps(UserError("what", where="here", mend="so")))  # noqa: S301
    assert str(error) == "here: what\n  mend: so"
    assert "raysys[gpu]" in str(missing_extra("xgboost", "gpu"))


class Rates(Settings):
    """What several learners have, each with other values."""

    goes_over_default: ClassVar[bool] = True

    rate: float = 1.0
    epochs: int = 3
    every: dict[str, int] = {"steps": 5}


class Holds(Settings):
    training: Rates = Rates(rate=0.1, every={"epochs": 1})
    plain: Rates = Rates()


def test_what_a_mapping_does_not_say_is_as_the_holder_has_it():
    own = Holds().training
    assert (own.rate, own.epochs, own.every) == (0.1, 3, {"epochs": 1})
    moved = parse_settings(Holds, {"training": {"epochs": 7}, "plain": {"rate": 2}}, where="here")
    assert moved.training == own.model_copy(update={"epochs": 7})
    assert moved.plain == Rates(rate=2)
    # what is said is taken whole: one of two ways to say it does not stay beside the other
    assert parse_settings(
        Holds, {"training": {"every": {"steps": 2}}}, where=""
    ).training.every == {"steps": 2}
    assert Holds(training=Rates(epochs=7)).training.rate == 1.0, "a model is as it is"
    with pytest.raises(UserError, match=r"training\.rat: unknown key"):
        parse_settings(Holds, {"training": {"rat": 2}}, where="here")
