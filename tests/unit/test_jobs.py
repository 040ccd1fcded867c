"""Jobs on the wire."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StoreError
from shared.jobs import PlanJob, ProbeJob, WriteJob, decode, encode, write_queue

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
JOBS = st.one_of(
    st.builds(PlanJob, TEXT, TEXT, st.integers(0, 9)),
    st.builds(
        WriteJob,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        st.lists(TEXT).map(tuple),
        attempt=st.integers(0, 9),
        split=st.booleans(),
    ),
    st.builds(ProbeJob, TEXT, st.integers(0, 9)),
)
METADATA = {"id", "dequeuecount", "expirationtime", "insertiontime", "nextvisibletime", "popreceipt", "queuetrigger"}


@given(JOBS)
def test_a_job_comes_back_as_it_was_sent(job: PlanJob | WriteJob | ProbeJob) -> None:
    assert decode(encode(job)) == job


@given(JOBS)
def test_no_field_is_named_as_the_metadata_of_a_queue_trigger(job: PlanJob | WriteJob | ProbeJob) -> None:
    assert not {key.lower() for key in json.loads(encode(job))} & METADATA


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"job": "plan"}', '{"job": "x"}', '{"job":"write","paths":3}', b"\xff"]
)
def test_anything_else_is_refused_without_being_quoted(body: str | bytes) -> None:
    with pytest.raises(StoreError, match="not one of Vaultferry's jobs"):
        decode(body)


@given(st.from_regex("[a-z][a-z0-9-]{0,39}", fullmatch=True))
def test_every_vault_id_makes_legal_queue_names(vault_id: str) -> None:
    for name in (write_queue(vault_id), write_queue(vault_id) + "-poison"):
        assert 3 <= len(name) <= 63
        assert re.fullmatch("[a-z0-9](-?[a-z0-9])*", name)
