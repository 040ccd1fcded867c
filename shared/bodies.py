"""What a request's body may say. Apart from `api`, so that pydantic is loaded by the first request that needs it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, model_validator

from shared.settings import Settings


class Nothing(Settings):
    """A request whose address says it all."""


class Execute(Settings):
    dry_run: StrictBool = Field(False, description="Only make a plan.")
    allow_deletes: StrictBool = Field(False, description="Delete without asking, however much it is.")
    plan: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="The run of a finished plan: carry out exactly that, or nothing where something has changed since.",
    )

    @model_validator(mode="after")
    def _check_plan(self) -> Execute:
        if self.plan is not None and (self.dry_run or self.allow_deletes):
            raise ValueError("a `plan` says all that is done: it goes with neither `dry_run` nor `allow_deletes`")
        return self


class Replay(Settings):
    path: str | None = Field(None, min_length=1, max_length=4096, description="Default: all that failed.")


class Resolve(Settings):
    path: str = Field(min_length=1, max_length=4096)
    take: Literal["source", "target"] = Field(description="Whose value all sides get.")
    target: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="With `target`: which one, where several differ from the source.",
    )

    @model_validator(mode="after")
    def _check_target(self) -> Resolve:
        if self.target is not None and self.take != "target":
            raise ValueError("`target` goes with `take: target` only")
        return self


class Look(Settings):
    """Something to look at: of one sync, or of all that read a vault."""

    sync: str | None = Field(None, min_length=1, description="The path is below its source prefix.")
    vault: str | None = Field(None, min_length=1, description="The path is the secret's full name in it.")
    path: str = Field(min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _check_one(self) -> Look:
        if (self.sync is None) == (self.vault is None):
            raise ValueError("expected either `sync` or `vault`")
        return self
