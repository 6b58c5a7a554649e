"""All evidence by one command: what runs, what is taken over, what is written."""

import pytest

from iterinf.errors import UserError
from launch import evidence
from launch.evidence import CONFIGS, QUESTIONS, answer, choose_questions
from launch.grid import expand_grid

TINY = """from tests import tiny


def get_config():
    config = tiny.get_config()
    config.refiners = ({refiners})
    return config
"""


def test_every_question_has_a_config():
    for question in QUESTIONS:
        runs = expand_grid(CONFIGS / f"{question.config}.py", optional=True)
        assert len(runs) in (1, 2, 3)
    assert choose_questions([]) == list(QUESTIONS)
    assert choose_questions(["camvid_small_seeds"])[0].on_camvid
    with pytest.raises(UserError, match="--only=camvid is unknown; known: quickstart"):
        choose_questions(["camvid"])


def test_ablations_take_over_the_segmenter_of_what_they_change():
    seeds = expand_grid(CONFIGS / "camvid_small_seeds.py")
    (ablations,) = expand_grid(CONFIGS / "camvid_small_ablations.py", optional=True)
    assert ablations.segmenter == seeds[0].segmenter != seeds[1].segmenter


@pytest.mark.slow
def test_two_questions_share_a_segmenter(tmp_path, monkeypatch):
    for name, refiners in (("first", "'dense_crf',"), ("second", "'context_module',")):
        (tmp_path / f"{name}.py").write_text(TINY.format(refiners=refiners))
    questions = [evidence.Question(n.title(), n, False) for n in ("first", "second")]
    monkeypatch.setattr(evidence, "CONFIGS", tmp_path)
    root = tmp_path / "runs"
    assert answer(questions, root, [], seconds=0.0)[1] == [
        "first/unchanged",
        "second/unchanged",
    ]
    assert "No run is finished yet" in (root / "evidence.md").read_text()
    assert answer(questions, root, []) == ([], [])
    logs = [
        (root / name / "unchanged" / "segmenter" / "metrics.jsonl").read_text()
        for name in ("first", "second")
    ]
    assert logs[0] == logs[1]  # seconds and all: it was not trained twice
    text = (root / "evidence.md").read_text()
    assert "## First" in text
    assert "FCN8 + context module" in text
