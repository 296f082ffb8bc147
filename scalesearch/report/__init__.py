"""What somebody asks of a finished study, answered with numbers from its files and the ledger; nothing is trained.

`read` gathers the facts, `answers` puts the questions to them, and `markdown` says it in words. A question that the
study cannot answer has for its answer that it was not measured, and the command that would.
"""

from __future__ import annotations

from pathlib import Path

from scalesearch.ledger import write_atomic
from scalesearch.report.facts import Facts, Reference, Scored, read
from scalesearch.report.questions import QUESTIONS, answers
from scalesearch.report.words import markdown

__all__ = ["QUESTIONS", "Facts", "Reference", "Scored", "answers", "markdown", "read", "write"]


def write(facts: Facts, directory: Path) -> Path:
    """Write report.md into the study's directory, and say where."""
    path = directory / "report.md"
    write_atomic(path, markdown(facts.study, answers(facts)).encode())
    return path
