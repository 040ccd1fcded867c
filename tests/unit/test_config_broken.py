"""Each file in broken/ names, at its end, exactly the problems that are to be told: `# LINE: KEY: MESSAGE (HINT)`."""

import traceback
from pathlib import Path

import pytest

from shared import vaults
from shared.config import InvalidConfig, load
from shared.config.build import parse
from shared.config.problems import listed

CANARY = "CANARY-5d1f"
"""In every broken file where a value stands that could be a secret."""
BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))
ENVIRONMENT = {"MOOD": CANARY}


def told(error: InvalidConfig) -> list[str]:
    """The problems in the notation of the broken files."""
    return [f"{problem.line or '-'}: {str(problem).partition(': ')[2]}" for problem in error.problems]


def everything_shown(error: BaseException) -> str:
    """All that could end in a log: the error, its traceback, and whatever is chained to it, suppressed or not."""
    seen: list[str] = ["".join(traceback.format_exception(error))]
    chained: BaseException | None = error
    while chained is not None:
        seen += [str(chained), repr(chained), repr(chained.args), repr(vars(chained))]
        chained = chained.__cause__ or chained.__context__
    return "\n".join(seen)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_told_exactly_what_is_wrong(path: Path) -> None:
    text = path.read_text()
    expected = text.rpartition("# expected:\n")[2].replace("{kinds}", listed(vaults.kinds()))
    with pytest.raises(InvalidConfig) as caught:
        parse(text.encode(), ENVIRONMENT, "vaultferry.yaml")
    assert told(caught.value) == [line.removeprefix("# ") for line in expected.splitlines()]
    assert CANARY not in everything_shown(caught.value)


def test_there_are_enough_broken_files() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"vaults: {CANARY}\0".encode(), "-: the file is binary or UTF-16; expected YAML in UTF-8"),
        (f"vaults: {CANARY}".encode("utf-16"), "-: the file is binary or UTF-16; expected YAML in UTF-8"),
        (f"a: b\nvaults: {CANARY}é".encode("latin-1"), "2: the file is not UTF-8"),
        (CANARY.encode() * 100_000, "-: the file is larger than 1,000,000 bytes; this is not a configuration"),
        (b"[" * 900_000, "1: nested deeper than 40 levels"),
        (b"? " * 400_000, "1: nested deeper than 40 levels"),
        (b"a: [" + b"x," * 200_000 + b"]", "1: more than 100,000 keys and values; this is not a configuration"),
    ],
    ids=["nul", "utf-16", "latin-1", "too-large", "brackets", "question-marks", "too-many"],
)
def test_what_is_no_configuration_is_refused(raw: bytes, expected: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(raw, {}, "vaultferry.yaml")
    assert told(caught.value) == [expected]
    assert CANARY not in everything_shown(caught.value)


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    import tracemalloc

    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(300_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidConfig, match=r"huge\.yaml: the file is larger than 1,000,000 bytes"):
            load(str(huge), {})
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_folder_a_missing_and_an_unreadable_path_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="is a folder; expected a YAML file"):
        load(str(tmp_path), {})
    with pytest.raises(InvalidConfig, match="does not exist; `vaultferry init` writes a first file"):
        load(str(tmp_path / "no.yaml"), {})
    with pytest.raises(InvalidConfig, match=r"can not be read \(.+\)"):
        load(str(tmp_path / ("x" * 300)), {})
    with pytest.raises(InvalidConfig, match="is not a path"):
        load("a\0b", {})


def test_problems_come_in_the_order_of_the_file_and_can_be_clicked() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(b"history: {retention: x}\nvaults:\n  A: b\nsync: {}\n", {}, "some/vaultferry.yaml")
    assert str(caught.value).splitlines() == [
        "4 problems in the configuration:",
        "  some/vaultferry.yaml:1: history.retention: expected a number of days or hours, as in 365d or 12h "
        "(leave it out to keep all for ever)",
        "  some/vaultferry.yaml:3: vaults.A: not an id: expected a lower-case letter, then up to 39 lower-case letters, "
        "digits and '-'",
        "  some/vaultferry.yaml:3: vaults.A: expected keys and values, such as `kind`",
        "  some/vaultferry.yaml:4: sync: unknown key (did you mean 'syncs'?)",
    ]
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [
        (1, "history.retention"),
        (3, "vaults.A"),
        (3, "vaults.A"),
        (4, "sync"),
    ]
