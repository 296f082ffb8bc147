"""A study: a search, with the settings that make it that search, its files, and the answer that it came to."""

from scalesearch.study.answer import (
    Answer,
    NothingLearnt,
    candidate_values,
    point,
    write_answer,
    write_csv,
    write_nothing,
    write_trials,
)
from scalesearch.study.files import Scored, Study, TrainedCandidate, possible_of
from scalesearch.study.settings import StudySettings, decisive_settings
from scalesearch.study.target import TargetAnswer, family_of, target_page, write_target

__all__ = [
    "Answer",
    "NothingLearnt",
    "Scored",
    "Study",
    "StudySettings",
    "TargetAnswer",
    "TrainedCandidate",
    "candidate_values",
    "decisive_settings",
    "family_of",
    "point",
    "possible_of",
    "target_page",
    "write_answer",
    "write_csv",
    "write_nothing",
    "write_target",
    "write_trials",
]
