"""The measurement itself: an oracle scores 100 %, a mute generator 0 %, and figures print as one
line each.
"""

from demo_model.evaluate import evaluate
from demo_model.samples import BUCKETS, draw_samples


def count(text: str) -> int:
    return len(text) // 3


def test_an_oracle_is_always_right_and_the_mute_never():
    answers = {
        sample.prompt: sample.expected
        for bucket in BUCKETS
        for seed in (1, 2)
        for sample in draw_samples(bucket, seed=seed, n_samples=5, count=count)
    }
    right = list(evaluate(answers.__getitem__, count, n_samples=5))
    wrong = list(evaluate(lambda prompt: "", count, n_samples=5))
    assert [figure.n_right for figure in right] == [10] * len(BUCKETS)
    assert [figure.n_right for figure in wrong] == [0] * len(BUCKETS)


def test_a_figure_is_one_line_of_name_value_unit_and_counts():
    (figure,) = evaluate(lambda prompt: "", count, buckets=["json"], seeds=[1], n_samples=4)
    assert str(figure) == "json 0.0 % (0/4)"
    assert len(figure.mistakes) == 4
