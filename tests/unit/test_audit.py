"""Entries of Vault's audit log → notices, and notices → records and back. What a real Vault logs is in tests/servers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audit import (
    NEWEST,
    Unreadable,
    from_record,
    looks_whole,
    may_matter,
    merge,
    project,
    read_line,
    to_record,
)
from shared.notices import AuditNotice, GapNotice

CANARY = "canary-7d1f"
HMAC = "hmac-sha256:" + "0" * 64


def entry(
    operation: str = "update",
    path: str = "secret/data/apps/db",
    *,
    mount: str = "secret/",
    mount_type: str = "kv",
    response: Any = None,
    kind: str = "response",
    namespace: Any = None,
    **more: Any,
) -> dict[str, Any]:
    request = {
        "id": "5b7c",
        "operation": operation,
        "mount_point": mount,
        "mount_type": mount_type,
        "namespace": {"id": "root"} if namespace is None else namespace,
        "path": path,
        "data": {"data": {"password": HMAC}},
    }
    answer = {"mount_point": mount, "mount_type": mount_type, **({} if response is None else {"data": response})}
    return {"time": "2026-01-01T00:00:00Z", "type": kind, "request": request, "response": answer, **more}


def line(given: dict[str, Any]) -> bytes:
    return json.dumps(given, separators=(",", ":")).encode()


def change(path: str = "data/apps/db", version: int | None = None, namespace: str = "", mount: str = "secret/") -> Any:
    return AuditNotice(mount, path, namespace, version)


NOTHING = {
    "a request": {key: value for key, value in entry(kind="request").items() if key != "response"},
    "a read": entry("read", response={"data": {"pin": 4711}, "metadata": {"version": 3}}),
    "a listing": entry("list", "secret/metadata/apps/"),
    "a failure": entry(error="1 error occurred"),
    "another engine": entry(mount="transit/", path="transit/keys/a", mount_type="transit"),
    "a token": entry(path="auth/token/create", mount="auth/token/", mount_type="token"),
    "a policy that is read": entry("read", "sys/policies/acl/p", mount="sys/", mount_type="system"),
    "an audit device": entry(path="sys/audit/test", mount="sys/", mount_type="system"),
}
CHANGES = {
    "create": (entry("create", response={"version": 1}), change()),
    "update": (entry(response={"version": 7}), change(version=7)),
    "patch": (entry("patch", response={"version": 8}), change(version=8)),
    "wrapped": (entry(), change()),
    "soft delete": (entry("delete"), change()),
    "delete versions": (entry(path="secret/delete/a"), change("delete/a")),
    "undelete": (entry(path="secret/undelete/a"), change("undelete/a")),
    "destroy": (entry(path="secret/destroy/a"), change("destroy/a")),
    "metadata": (entry("patch", "secret/metadata/a"), change("metadata/a")),
    "metadata delete": (entry("delete", "secret/metadata/a"), change("metadata/a")),
    "v1": (entry("create", "old/a", mount="old/"), change("a", mount="old/")),
    "the old name of KV": (entry("create", "old/a", mount="old/", mount_type="generic"), change("a", mount="old/")),
    "a mount with slashes": (entry(path="a/b/data/c", mount="a/b/"), change("data/c", mount="a/b/")),
    "policy": (
        entry(path="sys/policies/acl/My-Pol", mount="sys/", mount_type="system"),
        change("policies/acl/My-Pol", mount="sys/"),
    ),
    "policy, old path": (
        entry("delete", "sys/policy/p", mount="sys/", mount_type="system"),
        change("policy/p", mount="sys/"),
    ),
    "a long name": (entry(path="secret/data/" + "x/" * 99 + "y"), change("data/" + "x/" * 99 + "y")),
    "spaces and unicode": (entry(path="secret/data/a b/ü/日本"), change("data/a b/ü/日本")),
    "a remount": (entry(path="sys/remount", mount="sys/", mount_type="system"), GapNotice("remount")),
    "a restored snapshot": (
        entry(path="sys/storage/raft/snapshot-force", mount="sys/", mount_type="system"),
        GapNotice("storage/raft/snapshot-force"),
    ),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_changes_no_secret_asks_for_nothing(what: str) -> None:
    assert project(NOTHING[what]) is None


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_one_is_noticed_and_passes_the_cheap_test(what: str) -> None:
    given, expected = CHANGES[what]
    assert looks_whole(line(given))
    assert may_matter(line(given))
    assert project(read_line(line(given))) == expected


@pytest.mark.parametrize("what", ["a request", "a read", "a listing", "another engine", "a policy that is read"])
def test_the_cheap_test_keeps_most_of_the_rest_from_being_parsed(what: str) -> None:
    assert not may_matter(line(NOTHING[what]))


def test_the_cheap_test_is_not_led_astray_by_the_names_in_the_answer_to_a_read() -> None:
    answer = {"data": {"a": HMAC}, "metadata": {"created_time": HMAC, "deletion_time": "", "destroyed": False}}
    assert not may_matter(line(entry("read", response=answer)))


@pytest.mark.parametrize(
    ("namespace", "path", "mount", "expected"),
    [
        ({"id": "x1", "path": "team/"}, "secret/data/a", "secret/", change("data/a", namespace="team/")),
        ({"id": "x1", "path": "team/"}, "team/secret/data/a", "team/secret/", change("data/a", namespace="team/")),
        ({"id": "x1", "path": "a/b"}, "a/b/secret/data/a", "secret/", change("data/a", namespace="a/b/")),
        (
            {"id": "x1", "path": "team/"},
            "team/sys/policy/p",
            "sys/",
            change("policy/p", namespace="team/", mount="sys/"),
        ),
        ({"id": "x1", "path": "team/"}, "team/sys/remount", "sys/", GapNotice("remount")),
        # A mount may be called as its namespace is.
        ({"id": "x1", "path": "kv/"}, "kv/data/a", "kv/kv/", change("data/a", namespace="kv/", mount="kv/")),
        ({"id": "x1", "path": "kv/"}, "kv/data/a", "kv/", change("data/a", namespace="kv/", mount="kv/")),
        ({"id": "root", "path": ""}, "secret/data/a", "secret/", change("data/a")),
        ({"id": "root"}, "secret/data/a", "secret/", change("data/a")),
        ({}, "secret/data/a", "secret/", change("data/a")),
    ],
)
def test_namespaces(namespace: Any, path: str, mount: str, expected: Any) -> None:
    given = entry(path=path, mount=mount, namespace=namespace)
    assert may_matter(line(given))
    assert project(read_line(line(given))) == expected


def test_a_namespace_that_is_only_an_id_is_not_taken_for_the_root() -> None:
    with pytest.raises(Unreadable):
        project(entry(namespace={"id": "x1"}))


@pytest.mark.parametrize("prefix", [b"", b"@cee: ", b"vault-1 ", b"<13>", b"{hub} ", b"a{b {c} "])
def test_a_prefix_is_passed_over(prefix: bytes) -> None:
    text = prefix + line(entry(response={"version": 2}))
    assert looks_whole(text)
    assert project(read_line(text)) == change(version=2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"<json:object><json:string name='type'>response</json:string></json:object>", "jsonx"),
        (b"no object", "no JSON object"),
        (b"", "no JSON object"),
        (line(entry())[:-20], "not JSON"),
        (b"{" * 100_000 + b"}", "not JSON"),
        (b'{"a":' * 100_000 + b"}", "not JSON"),
        (b'{"a":"\xff"}', "not JSON"),
        (b'{"a":' + b"1" * 10_000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_object_is_unreadable_and_never_quoted(text: bytes, why: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_line(text)
    assert str(caught.value) == why
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "given",
    [
        [],
        {},
        7,
        {"type": 1},
        {"type": "response"},
        {"type": "response", "request": []},
        {"type": "response", "request": {"operation": "update"}},
        {"type": "response", "request": {"operation": ["update"], "path": "a"}},
        entry(mount="other/"),
        entry(mount="secret"),
        entry(path="secret-data/a", mount="secret-"),
        {**entry(), "request": {**entry()["request"], "mount_point": 7}},
        entry(path="secret/data/../x"),
        entry(path="secret/data//x"),
        entry(path="secret/"),
        entry(path="secret/data/\ud800"),
        entry(namespace={"id": "x", "path": "\udfff"}),
        entry(path="\ud800/data/a", mount="\ud800/"),
        # `kv/data/a` in the mount, or `data/a`, with the namespace before it: nobody knows.
        entry(path="kv/kv/data/a", mount="kv/kv/", namespace={"id": "x", "path": "kv/"}),
    ],
)
def test_what_is_no_entry_or_leaves_its_place_is_unreadable(given: Any) -> None:
    with pytest.raises(Unreadable):
        project(given)


@pytest.mark.parametrize("answer", [None, 7, "x", [], {}, {"data": None}, {"data": [3]}])
def test_an_answer_that_is_none_tells_no_version(answer: Any) -> None:
    assert project({**entry(), "response": answer}) == change()


def test_what_is_cut_off_does_not_look_whole() -> None:
    whole = line(entry())
    assert looks_whole(whole)
    assert not looks_whole(whole[:-20])
    assert not looks_whole(b"}")


@pytest.mark.parametrize("version", [0, -1, True, "3", 2.0, NEWEST + 1, 10**30, None, {"n": 1}])
def test_a_version_that_is_none_is_not_believed(version: Any) -> None:
    assert project(entry(response={"version": version})) == change()


def test_numbers_are_versions_only_where_versions_are_told() -> None:
    assert project(entry(path="secret/metadata/a", response={"version": 4711})) == change("metadata/a")
    assert project(entry("create", response={"version": 1})) == change()


def test_raw_logs_leave_no_value_behind() -> None:
    raw = entry(
        response={"version": 3, "created_time": CANARY, "data": {CANARY: CANARY}},
        auth={"client_token": CANARY, "metadata": {"user": CANARY}},
    )
    raw["request"] |= {"data": {"data": {"password": CANARY, CANARY: 4711}}, "headers": {"x": [CANARY]}}
    raw["response"] |= {"headers": {CANARY: CANARY}, "warnings": [CANARY]}
    record = to_record(project(read_line(line(raw)), "hub"))  # type: ignore[arg-type]
    assert record == {
        "vaultferry": "change", "mount": "secret/", "path": "data/apps/db", "version": 3, "vault": "hub",
    }  # fmt: skip


names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)
notices = st.one_of(
    st.builds(
        AuditNotice,
        mount=names.map(lambda name: f"{name}/"),
        path=st.lists(names, min_size=1, max_size=4).map("/".join),
        namespace=st.just("") | names.map(lambda name: f"{name}/"),
        version=st.none() | st.integers(1, NEWEST),
        vault=st.none() | st.just("hub"),
    ),
    st.builds(GapNotice, why=st.text(st.characters(exclude_categories=["Cs"]), max_size=200), vault=st.none()),
)


@given(notices)
def test_records_carry_everything_there_is(notice: Any) -> None:
    assert from_record(json.loads(json.dumps(to_record(notice)))) == notice


@given(st.none() | st.integers(1, 9), st.none() | st.integers(1, 9), st.none() | st.integers(1, 9))
def test_merging_does_not_depend_on_the_order(one: int | None, two: int | None, three: int | None) -> None:
    a, b, c = change(version=one), change(version=two), change(version=three)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a


def test_whatever_tells_no_version_has_to_be_looked_at() -> None:
    assert merge(change(version=9), change()) == change()


@pytest.mark.parametrize(
    "record",
    [
        {"vaultferry": "surprise", "mount": "secret/", "path": "data/a"},
        {"vaultferry": ["gap"]},
        {"vaultferry": "change"},
        {"vaultferry": "change", "mount": "secret", "path": "a"},
        {"vaultferry": "change", "mount": "secret/", "path": "../a"},
        {"vaultferry": "change", "mount": "secret/", "path": 7},
        {"vaultferry": "change", "mount": "secret/", "path": "\ud800"},
        {"vaultferry": "change", "mount": "secret/", "path": "a", "namespace": "\ud800/"},
        {"vaultferry": "change", "mount": "secret/", "path": "a", "version": True},
        {"vaultferry": "change", "mount": "secret/", "path": "a", "version": NEWEST + 1},
        {"vaultferry": "gap", "vault": 7},
    ],
)
def test_records_are_not_trusted_either(record: Any) -> None:
    with pytest.raises(Unreadable):
        from_record(record)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["type", "error", "request", "response", "vaultferry", "mount", "path", "namespace", "version", "vault", "why"]
INNER = ["operation", "path", "namespace", "mount_point", "mount_type", "data"]


@given(
    st.dictionaries(st.sampled_from(KEYS), anything | st.dictionaries(st.sampled_from(INNER), anything)),
    st.booleans(),
    st.sampled_from(["update", "delete", "read"]),
)
def test_nothing_but_unreadable_is_ever_raised(given_entry: dict[str, Any], finished: bool, operation: str) -> None:
    if finished:
        given_entry["type"] = "response"
        if isinstance(given_entry.get("request"), dict):
            given_entry["request"]["operation"] = operation
    try:
        notice = from_record(given_entry)
    except Unreadable:
        return
    if notice is not None:
        json.dumps(to_record(notice)).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_unreadable(text: bytes) -> None:
    looks_whole(text)
    may_matter(text)
    with contextlib.suppress(Unreadable):
        read_line(text)
