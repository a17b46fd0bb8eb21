"""The sampling chain against a plain float64 reference, and the counter-based draw."""

import math
import weakref
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from erllama.errors import DecodeFailed, InvalidParameter
from erllama.request import SamplingParams
from erllama.sequence.sampling import TokenSampler, log_softmax_at, top_candidates, uniform

INF = math.inf


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def sampler(history: list[int] | None = None, grammar=None, **params) -> TokenSampler:
    return TokenSampler(SamplingParams(**{"seed": 1, **params}), history or [], grammar)


def random_row(seed: int, n: int, scale: float = 4.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


# --- the reference: the documented order, in the plainest way -------------------------------------


class TooClose(Exception):
    """A cut or the draw lies within rounding: float32 and float64 may differ here and both be
    right.
    """


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b), 1e-3)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    total = math.fsum(weights)
    return [w / total for w in weights]


def penalised_logits(logits: np.ndarray, params: SamplingParams, history: list[int]) -> list[float]:
    """llama.cpp's llama_sampler_penalties_apply over float32 values, after the logit bias."""
    out = [float(x) for x in logits]
    for token, bias in params.logit_bias:
        out[token] = -INF if bias <= -100 else out[token] + bias
    if params.repeat_last_n != 0:
        window = history if params.repeat_last_n < 0 else history[-params.repeat_last_n :]
        for token, count in Counter(window).items():
            value = out[token]
            value = value * params.repetition_penalty if value <= 0 else value / params.repetition_penalty
            out[token] = value - count * params.frequency_penalty - params.presence_penalty
    return out


def reference(
    logits: np.ndarray, params: SamplingParams, history: list[int], position: int, allowed: set[int] | None = None
) -> int:
    """Bias, grammar, penalties, top_k, top_p, min_p, temperature, draw. Raises `TooClose` where
    rounding decides.
    """
    values = penalised_logits(logits, params, history)
    token = reference_choice(values, params, uniform(params.seed or 0, position))
    if allowed is None or token in allowed:
        return token
    masked = [v if i in allowed else -INF for i, v in enumerate(values)]
    return reference_choice(masked, params, uniform(params.seed or 0, position, 1))


def reference_choice(values: list[float], params: SamplingParams, u: float) -> int:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if params.temperature == 0:
        if len(order) > 1 and values[order[0]] != values[order[1]] and close(values[order[0]], values[order[1]]):
            raise TooClose
        return order[0]
    for a, b in pairwise(order):
        if values[a] != values[b] and math.isfinite(values[b]) and close(values[a], values[b]):
            raise TooClose  # float32 may order them the other way round
    truncates = 0 < params.top_k < len(values) or params.top_p < 1 or params.min_p > 0
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        probabilities, total, keep = softmax([values[i] for i in order]), 0.0, 0
        for p in probabilities:
            total, keep = total + p, keep + 1
            if close(total, params.top_p):
                raise TooClose
            if total >= params.top_p:
                break
        order = order[:keep]
    if params.min_p > 0:
        ratios = [math.exp(values[i] - values[order[0]]) for i in order]
        if any(close(r, params.min_p) for r in ratios[1:]):
            raise TooClose
        order = [i for i, r in zip(order, ratios, strict=True) if r >= params.min_p]
    if not truncates:
        order.sort()
    probabilities = softmax([(values[i] - values[order[0]]) / params.temperature for i in order])
    total = 0.0
    for i, p in zip(order, probabilities, strict=True):
        total += p
        if abs(total - u) < 1e-4:
            raise TooClose
        if total > u:
            return i
    raise TooClose


@st.composite
def chains(draw):
    n = draw(st.sampled_from([1, 2, 3, 63, 64, 65, 130, 200, 700]))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.1, 0.8, 1.0, 3.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 5, 40, 1000])),
        top_p=draw(st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([0.8, 1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([-1.0, 0.0, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.5])),
        repeat_last_n=draw(st.sampled_from([-1, 0, 1, 4, 64])),
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        logit_bias=tuple(
            draw(
                st.dictionaries(st.integers(0, n - 1), st.sampled_from([-100.0, -1.5, 2.25]), max_size=min(3, n - 1))
            ).items()
        ),
    )
    logits = random_row(draw(st.integers(0, 2**32)), n, draw(st.sampled_from([0.5, 4.0])))
    history = draw(st.lists(st.integers(0, n - 1), max_size=12))
    return logits, params, history, draw(st.integers(0, 10**6))


@given(chains())
def test_the_chain_gives_what_the_documented_order_gives(chain):
    logits, params, history, position = chain
    try:
        expected = reference(logits, params, history, position)
    except TooClose:
        assume(False)
    assert TokenSampler(params, history).sample(logits.copy(), position) == expected


def test_candidates_are_drawn_in_order_of_id_exactly_when_nothing_truncates():
    """A convention, and all that makes a top_k of the whole vocabulary the same request as none:
    nothing sorts 152 k logits.
    """
    logits, wide = random_row(5, 50), {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    for position in range(50):
        tokens = {sampler(top_k=k, **wide).sample(logits.copy(), position) for k in (0, 50, 51)}
        assert len(tokens) == 1


@given(chains(), st.data())
def test_the_chain_with_a_grammar_gives_what_the_documented_order_gives(chain, data):
    logits, params, history, position = chain
    banned = {token for token, bias in params.logit_bias if bias <= -100}
    free = [i for i in range(len(logits)) if i not in banned]
    allowed = set(data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=20)))
    try:
        expected = reference(logits, params, history, position, allowed)
    except TooClose:
        assume(False)
    assert TokenSampler(params, history, Matcher(allowed)).sample(logits.copy(), position) == expected


def test_candidates_are_in_order_also_where_a_grammar_leaves_fewer_than_top_k():
    logits = row(0.0, 1.0, 2.0, 3.0, 9.0)
    for position in range(40):
        params = SamplingParams(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0, seed=1)
        expected = reference(logits, params, [], position, {1, 2})
        assert TokenSampler(params, [], Matcher({1, 2})).sample(logits.copy(), position) == expected


# --- top_candidates -------------------------------------------------------------------------------

small_floats = st.sampled_from([-INF, -3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 7.0])


@given(st.lists(small_floats, min_size=1, max_size=300), st.integers(1, 310))
def test_top_candidates_are_those_of_a_naive_sort_ties_included(values: list[float], k: int):
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_candidates(row(*values), k).tolist() == expected


@given(st.integers(0, 2**32), st.integers(1, 3000), st.integers(1, 60), st.booleans())
def test_top_candidates_of_long_rows_are_those_of_a_naive_sort(seed: int, n: int, k: int, coarse: bool):
    logits = random_row(seed, n)
    if coarse:
        logits = np.round(logits)  # many ties
    logits[np.random.default_rng(seed).random(n) < 0.1] = -INF
    expected = sorted(range(n), key=lambda i: (-logits[i], i))[:k]
    assert top_candidates(logits, k).tolist() == expected


def test_top_candidates_finds_a_maximum_after_the_last_whole_block():
    logits = np.zeros(64 * 10 + 1, dtype=np.float32)
    logits[-1] = 1.0
    assert top_candidates(logits, 2).tolist() == [640, 0]


# --- greedy ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 400))
def test_greedy_is_argmax(seed: int, n: int):
    logits = random_row(seed, n)
    assert sampler(temperature=0.0).sample(logits.copy(), 5) == int(np.argmax(logits))


def test_top_k_one_is_greedy_at_any_temperature():
    assert sampler(temperature=50.0, top_k=1).sample(row(0, 2, 1), 0) == 1


def test_greedy_takes_the_lowest_id_of_equal_logits():
    assert sampler(temperature=0.0).sample(row(1, 3, 3, 3), 0) == 1


def test_greedy_does_not_draw(monkeypatch):
    def no_draw(*_):
        raise AssertionError("greedy must not draw")

    monkeypatch.setattr("erllama.sequence.sampling.uniform", no_draw)
    monkeypatch.setattr("erllama.sequence.sampling.top_candidates", no_draw)
    assert sampler(temperature=0.0).sample(row(0, 1), 0) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30, 1e-4])
def test_a_tiny_temperature_is_as_good_as_greedy_and_warns_of_nothing(temperature: float):
    assert sampler(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0).sample(row(-30, 20, 10), 3) == 1


# --- the draw -------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40), st.integers(0, 1))
@example(2**64 - 1, 0, 0)
def test_uniform_lies_in_the_half_open_unit_interval(seed: int, position: int, draw: int):
    assert 0.0 <= uniform(seed, position, draw) < 1.0


def test_uniform_never_changes():
    # Resuming a generation that another version began depends on these.
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1), uniform(2**63, 4096), uniform(0, 0, 1)] == [
        0.28176129772258496,
        0.8628561488610587,
        0.80255116473696,
        0.3359890597042169,
        0.17636747548038112,
    ]


def test_a_negative_seed_is_its_value_modulo_two_to_the_64():
    assert uniform(-1, 7) == uniform(2**64 - 1, 7)


def _moments(x: np.ndarray) -> tuple[float, float, float]:
    centred = x - x.mean()
    return float(x.mean()), float(x.var()), float((centred[1:] * centred[:-1]).mean() / x.var())


@pytest.mark.parametrize(
    "draws",
    [
        pytest.param(lambda i: uniform(42, i), id="positions-of-one-seed"),
        pytest.param(lambda i: uniform(i, 17), id="neighbouring-seeds"),
        pytest.param(lambda i: uniform(i, i), id="diagonal"),
        pytest.param(lambda i: uniform(42, i // 2, i % 2), id="two-draws-of-a-position"),
    ],
)
def test_draws_have_the_mean_variance_and_independence_of_uniform_numbers(draws):
    n = 100_000
    x = np.array([draws(i) for i in range(n)])
    mean, variance, correlation = _moments(x)
    assert abs(mean - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(variance - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    assert abs(correlation) < 5 / math.sqrt(n)
    counts, _ = np.histogram(x, bins=64, range=(0, 1))
    assert _chi_square(counts, np.full(64, n / 64)) < _chi_square_limit(63)


def _chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def _chi_square_limit(df: int) -> float:
    """Wilson-Hilferty: exceeded by chance once in some three million (z = 5)."""
    return df * (1 - 2 / (9 * df) + 5 * math.sqrt(2 / (9 * df))) ** 3


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 0), (1.0, 4)])
def test_sampled_frequencies_match_the_softmax(temperature: float, top_k: int):
    logits, n = row(2.0, 1.0, 0.5, 0.0, -1.0, -0.5), 20_000
    pick = sampler(temperature=temperature, top_k=top_k, top_p=1.0, min_p=0.0)
    counts = np.bincount([pick.sample(logits.copy(), i) for i in range(n)], minlength=6)
    kept = np.argsort(-logits)[: top_k or 6]
    weights = np.exp(logits[kept].astype(np.float64) / temperature)
    assert counts.sum() == counts[kept].sum()
    assert _chi_square(counts[kept], n * weights / weights.sum()) < _chi_square_limit(len(kept) - 1)


def test_the_draw_depends_on_seed_and_position_alone():
    logits = random_row(3, 500)
    wide = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    one, other = sampler(seed=9, **wide), sampler(seed=9, **wide)
    for position in range(50):  # `one` has a past, `other` has not
        one.sample(random_row(position, 500), position)
    assert [one.sample(logits.copy(), p) for p in range(50)] == [
        other.sample(logits.copy(), p) for p in reversed(range(50))
    ][::-1]
    assert len({one.sample(logits.copy(), p) for p in range(50)}) > 10


def test_a_sampler_without_a_seed_is_refused():
    with pytest.raises(InvalidParameter, match="seed"):
        TokenSampler(SamplingParams(), [])


# --- bias and penalties ---------------------------------------------------------------------------


def test_a_bias_of_minus_100_bans_even_an_overwhelming_token():
    banned = sampler(temperature=0.0, logit_bias=((1, -100.0),))
    assert banned.sample(row(0, 5000, 1), 0) == 2


def test_a_bias_of_minus_99_only_pushes():
    assert sampler(temperature=0.0, logit_bias=((1, -99.0),)).sample(row(0, 5000, 1), 0) == 1


def test_two_biases_of_one_token_add_up():
    logits = row(0, 0)
    sampler(temperature=0.0, logit_bias=((1, 2.0), (1, 3.0))).sample(logits, 0)
    assert logits.tolist() == [0, 5]


def test_penalties_are_those_of_llama_cpp():
    logits = row(2.0, -2.0, 0.0, 1.0)
    sampler([0, 0, 1, 2], temperature=0.0, repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5).sample(
        logits, 4
    )
    assert logits.tolist() == [2 / 2 - 2 * 0.25 - 0.5, -2 * 2 - 0.25 - 0.5, 0 - 0.25 - 0.5, 1.0]


def test_penalties_look_at_the_last_n_tokens_only():
    logits = row(1.0, 1.0, 1.0)
    sampler([0, 1, 2], temperature=0.0, presence_penalty=1.0, repeat_last_n=2).sample(logits, 3)
    assert logits.tolist() == [1, 0, 0]


def test_repeat_last_n_minus_one_is_everything_and_zero_is_nothing():
    everything, nothing = np.zeros(100, dtype=np.float32), np.zeros(100, dtype=np.float32)
    sampler(list(range(90)), temperature=0.0, presence_penalty=1.0, repeat_last_n=-1).sample(everything, 90)
    sampler(list(range(90)), temperature=0.0, presence_penalty=1.0, repeat_last_n=0).sample(nothing, 90)
    assert everything.sum() == -90
    assert nothing.sum() == 0


def test_penalties_see_the_history_grow():
    history = [0]
    pick = sampler(history, temperature=0.0, presence_penalty=2.0)
    assert pick.sample(row(1.0, 0.5, 0.0), 1) == 1
    history.append(1)
    assert pick.sample(row(1.0, 0.5, 0.0), 2) == 2


# --- rows without a choice ------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    "bad", [(math.nan, 1, 2), (0, 1, math.nan), (math.nan, math.nan, INF), (-INF, -INF, -INF), (0, INF, 1)]
)
def test_a_row_that_offers_no_choice_fails_the_decode(temperature: float, bad: tuple[float, ...]):
    with pytest.raises(DecodeFailed, match="position 7"):
        sampler(temperature=temperature).sample(row(*bad), 7)


@given(st.integers(0, 10**6))
def test_a_banned_token_is_never_drawn(position: int):
    pick = sampler(temperature=100.0, top_k=0, top_p=1.0, min_p=0.0, logit_bias=((0, -100.0), (3, -100.0)))
    assert pick.sample(row(9, 1, 1, 9), position) in (1, 2)


# --- grammar --------------------------------------------------------------------------------------


class Matcher:
    """Allows a fixed set of tokens and remembers what it was asked."""

    param = "response_format"

    def __init__(self, tokens: set[int]) -> None:
        self.tokens, self.asked, self.n_masks, self.accepted = tokens, [], 0, []

    def allows(self, token: int) -> bool:
        self.asked.append(token)
        return token in self.tokens

    def allowed(self, n_vocab: int) -> np.ndarray:
        self.n_masks += 1
        return np.isin(np.arange(n_vocab), list(self.tokens))

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_grammar_that_allows_the_drawn_token_is_asked_once_and_masks_nothing():
    matcher = Matcher({1})
    assert sampler(grammar=matcher, temperature=0.0).sample(row(0, 2, 1), 0) == 1
    assert (matcher.asked, matcher.n_masks) == ([1], 0)


def test_a_grammar_that_refuses_masks_once_and_the_best_allowed_token_is_taken():
    matcher = Matcher({0, 2})
    assert sampler(grammar=matcher, temperature=0.0).sample(row(0, 2, 1), 0) == 2
    assert (matcher.asked, matcher.n_masks) == ([1], 1)


def test_sampling_does_not_advance_the_grammar_and_accepting_does():
    matcher = Matcher({0})
    pick = sampler(grammar=matcher, temperature=0.0)
    pick.sample(row(1, 0), 0)
    assert matcher.accepted == []
    pick.accept(0)
    assert matcher.accepted == [0]


def test_a_grammar_that_allows_nothing_is_the_clients_fault():
    for allowed, bias in ((set(), ()), ({0}, ((0, -100.0),))):
        with pytest.raises(InvalidParameter) as caught:
            sampler(grammar=Matcher(allowed), logit_bias=bias).sample(row(1, 2), 0)
        assert caught.value.param == "response_format"


def test_biases_that_leave_nothing_are_the_clients_fault():
    with pytest.raises(InvalidParameter) as caught:
        sampler(logit_bias=((0, -100.0), (1, -100.0))).sample(row(1, 2), 0)
    assert caught.value.param == "logit_bias"


def test_closing_lets_go_of_the_grammar():
    matcher = Matcher({0})
    freed = weakref.ref(matcher)
    pick = sampler(grammar=matcher)
    del matcher
    pick.close()
    pick.close()
    assert freed() is None


def test_what_takes_the_place_of_a_refused_token_has_its_fair_share():
    # One random number for both draws would always give the token that moves into the refused one's
    # place.
    pick = sampler(grammar=Matcher({1, 2}), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    counts = np.bincount([pick.sample(row(1.0, 0.0, 0.0), i) for i in range(20_000)], minlength=3)
    assert counts[0] == 0
    assert _chi_square(counts[1:], np.full(2, 10_000)) < _chi_square_limit(1)


# --- log probabilities ----------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(-1e4, 1e4))
def test_log_probabilities_are_those_of_the_softmax(seed: int, n: int, shift: float):
    logits = random_row(seed, n) + np.float32(shift)
    expected = [math.log(p) for p in softmax([float(x) for x in logits])]
    assert log_softmax_at(logits, range(n)) == pytest.approx(expected, abs=1e-4)


def test_log_probabilities_of_all_tokens_sum_to_one():
    assert math.fsum(map(math.exp, log_softmax_at(random_row(1, 1000), range(1000)))) == pytest.approx(1.0, abs=1e-5)


def test_a_banned_token_has_log_probability_minus_infinity():
    assert log_softmax_at(row(0.0, -INF), [0, 1]) == [0.0, -INF]


# --- what was drawn among -------------------------------------------------------------------------


def keeping(params: SamplingParams, grammar=None, **more) -> TokenSampler:
    return TokenSampler(params, [], grammar, keeps_drawn=True, **more)


def drawn_of(one: TokenSampler) -> dict[int, float]:
    ids, probabilities = one.take_drawn()
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


@given(chains(), st.data())
def test_a_token_is_among_what_it_was_drawn_from_and_the_draw_is_the_same(chain, data):
    logits, params, history, position = chain
    allowed = data.draw(st.none() | st.sets(st.integers(0, len(logits) - 1), min_size=1))
    matcher = None if allowed is None else Matcher(allowed)
    one = TokenSampler(params, history, matcher, keeps_drawn=True)
    try:
        token = one.sample(logits.copy(), position)
    except InvalidParameter:
        return
    plain = TokenSampler(params, history, None if allowed is None else Matcher(allowed))
    assert plain.sample(logits.copy(), position) == token
    assert plain.take_drawn() is None
    drawn = drawn_of(one)
    assert drawn[token] > 0
    assert math.fsum(drawn.values()) == pytest.approx(1)
    assert one.take_drawn() is None


def test_the_probabilities_are_those_behind_the_whole_chain():
    params = SamplingParams(temperature=0.5, top_k=3, top_p=1, min_p=0, seed=1, logit_bias=((4, -100.0),))
    one = keeping(params)
    one.sample(row(0.0, 1.0, 2.0, 3.0, 9.0), position=0)
    assert drawn_of(one) == pytest.approx(dict(zip((3, 2, 1), softmax([6.0, 4.0, 2.0]), strict=True)))


def test_greedy_is_certain_and_a_grammar_draws_among_what_it_allows():
    one = keeping(SamplingParams(temperature=0, seed=1))
    one.sample(row(0.0, 1.0, 2.0), position=0)
    assert drawn_of(one) == {2: 1.0}
    wide = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)
    one = keeping(wide, Matcher({0, 1}))
    one.sample(row(0.0, 1.0, 50.0), position=0)
    assert drawn_of(one) == pytest.approx(dict(zip((0, 1), softmax([0.0, 1.0]), strict=True)))


def test_an_end_that_had_to_come_was_not_drawn():
    one = keeping(SamplingParams(temperature=1, seed=1), Matcher({2}), banned=[2])
    assert one.sample(row(0.0, 1.0, 50.0), position=0) == 2
    assert one.take_drawn() is None
