"""Writes the tables of docs/rest.md from the URL table: ``python tests/house/rest_docs.py --write``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gymcast.server.problems import PROBLEM_TYPES
from gymcast.server.routes import routes

PAGE = Path(__file__).parents[2] / "docs" / "rest.md"


def addresses() -> str:
    """Every documented address, under the heading of its group."""
    lines: list[str] = []
    group = ""
    for route in routes():
        if not route.id:
            continue
        if route.group != group:
            group = route.group
            lines += ["", f"**{group}**", "", "| method | address | scope | does |", "|---|---|---|---|"]
        summary = route.summary.rstrip(".")
        lines.append(f"| {route.method} | `{route.template}` | {route.scope or 'open'} | {summary} |")
    return "\n".join(lines).strip()


def problems() -> str:
    """Every problem type."""
    lines = ["| status | type | meaning |", "|---|---|---|"]
    lines += [f"| {status} | `{kind}` | {meaning} |" for kind, (status, _, meaning) in PROBLEM_TYPES.items()]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with both tables as the code has them."""
    for name, table in (("addresses", addresses()), ("problems", problems())):
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        text, found = re.subn(
            pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL
        )
        assert found == 1, name
    return text


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
