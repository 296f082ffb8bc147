"""the answers of a finished study: how sure, how flat, what it did not measure; also as report.md"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalesearch.commands.status import GROUPS, Arguments
from scalesearch.workspace import DONE

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

__all__ = ["GROUPS", "Arguments"]
EXAMPLE = "scalesearch report study=NAME"


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """Every question about a finished study with its answer; nothing is trained."""
    from scalesearch import report
    from scalesearch.ledger import write_atomic
    from scalesearch.study import Study, target_page

    study = Study.read(arguments.workspace, arguments.study)
    if study.target is not None:
        path, page = study.directory / "report.md", target_page(study.target)
        write_atomic(path, page.encode())
        out.markdown(page)
        out.say(f"written: {path}")
        out.answer({**study.target, "file": str(path)})
        return DONE
    facts = report.read(study)
    answers, path = report.answers(facts), report.write(facts, study.directory)
    out.markdown(report.markdown(answers))
    out.say(f"written: {path}")
    out.answer({**answers, "file": str(path)})
    return DONE
