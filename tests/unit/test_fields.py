"""Rules for fields: what each does, in which order, and what is said of a secret that does not fit."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.fields import shape
from shared.rules import Build, FieldRules, Form
from tests.examples import examples

CANARY = "s3cret-canary"


def shaped(rules: FieldRules, fields: dict[str, Any], path: str = "apps/db") -> dict[str, Any]:
    return shape(rules, path, fields, lambda rule, what: None)


@pytest.mark.parametrize(
    ("rules", "fields", "expected"),
    [
        (FieldRules(), {"a": 1}, {"a": 1}),
        (FieldRules(), {}, {}),
        (FieldRules(include=("user", "pass*")), {"user": 1, "password": 2, "note": 3}, {"user": 1, "password": 2}),
        (FieldRules(exclude=("note",)), {"user": 1, "note": 3}, {"user": 1}),
        (FieldRules(include=("n*",), exclude=("note",)), {"note": 1, "name": 2}, {"name": 2}),
        (FieldRules(rename={"a": "b", "x": "y"}), {"a": 1, "c": 2}, {"b": 1, "c": 2}),
        (FieldRules(rename={"a": "b", "b": "a"}), {"a": 1, "b": 2}, {"b": 1, "a": 2}),
        (FieldRules(constants={"env": "prod", "a": "2"}), {"a": 1}, {"a": "2", "env": "prod"}),
        (FieldRules(split=("c",)), {"c": '{"host": "h", "port": 1}', "d": 2}, {"d": 2, "host": "h", "port": 1}),
        (FieldRules(split=("c",)), {"c": {"c": "inner"}}, {"c": "inner"}),
        (FieldRules(split=("gone",)), {"d": 2}, {"d": 2}),
    ],
)
def test_a_rule_does_what_it_says(rules: FieldRules, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert shaped(rules, fields) == expected


def test_rules_are_applied_in_their_order() -> None:
    rules = FieldRules(
        split=("config",),
        exclude=("debug",),
        rename={"host": "DB_HOST", "password": "DB_PASSWORD"},
        constants={"DB_ENGINE": "postgres"},
        build=(Build("env", Form.DOTENV, ("DB_*",)),),
    )
    fields = {"config": '{"host": "h", "debug": true}', "password": "p q", "note": "n"}
    assert shaped(rules, fields) == {"note": "n", "env": "DB_ENGINE=postgres\nDB_HOST=h\nDB_PASSWORD='p q'\n"}


def test_a_built_field_takes_the_place_of_what_it_is_made_from() -> None:
    fields = {"user": "u", "port": 5, "note": "n"}
    made = shaped(FieldRules(build=(Build("value", Form.JSON, ("user", "port")),)), fields)
    assert made == {"note": "n", "value": '{"port":5,"user":"u"}'}
    kept = shaped(FieldRules(build=(Build("value", Form.JSON, ("user", "port"), keep=True),)), fields)
    assert kept == {**fields, **made}
    again = shaped(FieldRules(build=(Build("user", Form.JSON, ("user",)),)), fields)
    assert again == {"port": 5, "note": "n", "user": '{"user":"u"}'}


def test_two_built_fields_may_be_made_from_the_same() -> None:
    rules = FieldRules(
        build=(
            Build("json", Form.JSON, ("**",)),
            Build("url", Form.TEMPLATE, template="pg://{fields.user}:{fields.port}/{name}"),
        )
    )
    assert shaped(rules, {"user": "u", "port": 5}) == {"json": '{"port":5,"user":"u"}', "url": "pg://u:5/db"}


def test_a_value_with_braces_is_no_template() -> None:
    rules = FieldRules(build=(Build("url", Form.TEMPLATE, template="{fields.a}{fields.b | upper}"),))
    assert shaped(rules, {"a": "{fields.b}", "b": "x"}) == {"url": "{fields.b}X"}


@pytest.mark.parametrize(
    ("rules", "fields", "message"),
    [
        (FieldRules(split=("c",)), {"c": CANARY}, "'c' is not JSON, .*fields.split"),
        (FieldRules(split=("c",)), {"c": f'["{CANARY}"]'}, "'c' is not a JSON object"),
        (FieldRules(split=("c",)), {"c": '{"d": NaN}'}, "'c' is not JSON, "),
        (FieldRules(split=("c",)), {"c": "[" * 100_000}, "'c' is not JSON, "),
        (
            FieldRules(split=("c",)),
            {"c": '{"d": 1e400}'},
            "'c' holds a number that can not be carried exactly.*fields.split",
        ),
        (
            FieldRules(split=("c",)),
            {"c": f'{{"d": 1, "d": "{CANARY}"}}'},
            "'c' holds JSON with one key twice.*fields.split",
        ),
        (FieldRules(split=("c",)), {"c": '{"d": 1}', "d": CANARY}, "'c' holds 'd', which is there already"),
        (FieldRules(rename={"a": "b"}), {"a": CANARY, "b": 2}, "'a' and 'b' would both be called 'b' .fields.rename"),
        (FieldRules(include=("x",)), {"a": CANARY}, "no field is left"),
        (FieldRules(build=(Build("v", Form.JSON, ("user",)),)), {"a": CANARY}, "no field 'user' .fields.build.v"),
        (FieldRules(build=(Build("v", Form.JSON, ("a",)),)), {"a": 1, "v": CANARY}, "has a field 'v' already"),
        (FieldRules(build=(Build("v", Form.DOTENV, ("*",)),)), {"a-b": CANARY}, "'a-b' can not be a variable's name"),
        (FieldRules(build=(Build("v", Form.TEMPLATE, template="{fields.b}"),)), {"a": CANARY}, "no field 'b'"),
    ],
)
def test_what_does_not_fit_is_said_with_field_and_rule_and_no_value(
    rules: FieldRules, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSecret, match=message) as caught:
        shaped(rules, fields)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


@settings(max_examples=examples(30))
@given(st.dictionaries(st.sampled_from(["V_A", "V_b", "V_0"]), st.text("ab '\"\\$`=#;&é", max_size=8), min_size=1))
def test_dotenv_lines_are_read_by_a_shell_as_they_were(values: dict[str, str]) -> None:
    text = shaped(FieldRules(build=(Build("env", Form.DOTENV, ("**",)),)), dict(values))["env"]
    show = "".join(f'printf "%s\\n" "${name}"\n' for name in values)
    read = subprocess.run(["/bin/sh"], input=text + show, capture_output=True, encoding="utf-8", check=True)
    assert read.stdout.split("\n")[:-1] == list(values.values())


def test_a_dotenv_value_of_several_lines_stays_on_one() -> None:
    text = shaped(FieldRules(build=(Build("env", Form.DOTENV, ("a",)),)), {"a": 'x\n"y"$z'})["env"]
    assert text == 'a="x\\n\\"y\\"\\$z"\n'


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_json_that_is_built_is_what_splitting_takes_apart(fields: dict[str, Any]) -> None:
    built = shaped(FieldRules(build=(Build("all", Form.JSON, ("**",)),)), dict(fields))
    assert json.loads(built["all"]) == fields
    if fields:
        assert shaped(FieldRules(split=("all",)), built) == fields


def test_each_rule_that_does_something_is_told_in_names_alone() -> None:
    told: list[tuple[str, str]] = []
    rules = FieldRules(
        split=("config",),
        exclude=("debug",),
        rename={"user": "login", "absent": "x"},
        constants={"env": CANARY},
        build=(Build("value", Form.JSON, ("login",)),),
    )
    fields = {"config": f'{{"user": "{CANARY}", "debug": 1}}'}
    shape(rules, "p", fields, lambda rule, what: told.append((rule, what)))
    assert told == [
        ("fields.split.config", "'config' becomes 'user', 'debug'"),
        ("fields.exclude", "'debug' is left out by 'debug'"),
        ("fields.rename.user", "'user' is called 'login'"),
        ("fields.set.env", "'env' is set"),
        ("fields.build.value", "'value' is made (json) from 'login'"),
    ]


def test_rules_are_silent_about_constants() -> None:
    rules = FieldRules(constants={"a": CANARY}, build=(Build("b", Form.TEMPLATE, template=CANARY),))
    assert CANARY not in repr(rules)
