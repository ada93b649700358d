"""docs/archers.md and the docstring say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gymcast.envs import game_spec
from gymcast.envs.games import archers as kernels
from gymcast.envs.single import ArchersEnv

SPEC = game_spec("archers")
PAGE = (Path(__file__).parents[2] / "docs" / "archers.md").read_text(encoding="utf-8")


def rows(first_cell: str) -> list[list[str]]:
    """Rows of tables whose first cell matches."""
    found = re.findall(rf"^\| ({first_cell}) \|(.*)\|$", PAGE, re.M)
    return [[first, *(cell.strip() for cell in rest.split(" | "))] for first, rest in found]


def test_the_options_are_all_there_with_their_defaults_and_values() -> None:
    section = PAGE[PAGE.index("## Options") : PAGE.index("## Actions")]
    table = {
        name: (default, allowed) for name, default, allowed, *_ in rows(r"`\w+`") if f"| `{name[1:-1]}` |" in section
    }
    table = {name.strip("`"): value for name, value in table.items() if name.strip("`") in SPEC.options}
    assert set(table) == set(SPEC.options)
    for name, option in SPEC.options.items():
        default, allowed = table[name]
        assert default.strip("`").strip('"') == str(option.default), name
        if option.choices:
            assert [choice.strip("`").strip('"') for choice in allowed.split(", ")] == list(map(str, option.choices))
        else:
            assert [float(number) for number in allowed.split(" to ")] == [option.low, option.high], name


def test_the_terms_of_the_shaped_reward_are_those_of_the_code() -> None:
    section = PAGE[PAGE.index('`"shaped"` (default)') : PAGE.index("## Scripted archers")]
    numbers = {
        name: [float(n) for n in re.findall(r"\d+(?:\.\d+)?", value)]
        for name, value in re.findall(r"^\| (kill|death|match|arrow|near miss) \| (.*?) \|", section, re.M)
    }
    assert numbers["kill"] == [1.0] and numbers["death"] == [kernels.SHAPED_DEATH], "docs/archers.md: SHAPED_DEATH"
    assert numbers["match"] == [kernels.SHAPED_MATCH, kernels.SHAPED_MATCH], "docs/archers.md: SHAPED_MATCH"
    assert numbers["arrow"] == [kernels.SHAPED_ARROW, kernels.SHAPED_ARROW], "docs/archers.md: SHAPED_ARROW"
    assert numbers["near miss"] == [kernels.SHAPED_NEAR, 1.0, kernels.NEAR, 0.0], "docs/archers.md: SHAPED_NEAR"


@pytest.mark.parametrize("text", [PAGE, ArchersEnv.__doc__ or ""], ids=["page", "docstring"])
def test_the_observation_table_covers_every_index_once(text: str) -> None:
    section = text[re.search(r"## Observation", text).start() : text.index("## Rewards")]  # type: ignore[union-attr]
    covered: list[int] = []
    for first, last in re.findall(r"^ *\| (\d+)(?:(?:,| -|-) ?(\d+))? +\|", section, re.M):
        covered += range(int(first), int(last or first) + 1)
    within_foes_and_arrows = [*range(1, 11)] if text is PAGE else []
    assert covered[:93] == list(range(kernels.observation_size(2)))
    if within_foes_and_arrows:  # the foe's entries 0 .. 10, then the arrow's 0 .. 6
        assert covered[93:] == [*range(kernels.FOE_SIZE), *range(kernels.ARROW_SIZE)]


def test_the_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, re.S)
    assert example is not None
    exec(compile(example.group(1), "docs/archers.md", "exec"), {})


def test_the_docstring_has_the_parts_gymnasium_asks_for() -> None:
    text = ArchersEnv.__doc__ or ""
    parts = ["Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End"]
    assert [part for part in [*parts, "Arguments", "Version History"] if f"## {part}" not in text] == []
    for name, option in SPEC.options.items():
        value = f'"{option.default}"' if isinstance(option.default, str) else option.default
        assert f"`{name}={value}`" in text
    assert f"v{SPEC.version}" in text and f"v{SPEC.version}:" in PAGE
