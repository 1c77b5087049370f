"""Any model, torch checkpoint or exported ONNX, judged on one part of a data set."""

from biigma_cli.judge.candidate import Candidate, Maps, data_of, open_candidate
from biigma_cli.judge.judgement import Judgement, Rival, judge, split_of

__all__ = [
    "Candidate",
    "Judgement",
    "Maps",
    "Rival",
    "data_of",
    "judge",
    "open_candidate",
    "split_of",
]
