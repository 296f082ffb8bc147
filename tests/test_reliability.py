"""docs/reliability.md names a test for each fault: each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    there = {
        node.name
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert named <= there, named - there
    assert set(re.findall(r"`(test_\w+\.py)`", PAGE)) <= {path.name for path in TESTS.glob("*.py")}
    assert len(named) > 30


def test_every_fault_of_a_table_has_its_test() -> None:
    tables = PAGE.partition("## Not tested")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert all("`test_" in row.split("|")[2] for row in rows), [row for row in rows if "`test_" not in row]
