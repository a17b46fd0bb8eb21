"""The newest of the longest matches, found as a plain search would find it."""

from hypothesis import given
from hypothesis import strategies as st

from erllama.speculation.lookup import MAX_MATCHED, MIN_MATCHED, PREDICTED, PromptLookup
from erllama.speculation.proposal import Proposal

TEXT = st.text("abc", max_size=60)


def ids(text: str) -> list[int]:
    return list(text.encode())


def shown(proposal: Proposal) -> str:
    return bytes(proposal.tokens).decode()


def plainly(text: list[int], earlier: list[list[int]], n_most: int) -> tuple[tuple[int, ...], int]:
    """By comparing every place with the end of the text."""
    whole = [token for one in earlier for token in (*one, -1)] + text
    first = len(whole) - len(text)
    best, best_at = 0, 0
    for at in (at for at in range(1, len(whole)) if whole[at] != -1):
        n = 0
        while (
            n < min(MAX_MATCHED, at, len(text)) and whole[at - 1 - n] == whole[-1 - n] and len(whole) - 1 - n >= first
        ):
            n += 1
        if n >= best:
            best, best_at = n, at
    if best < MIN_MATCHED:
        return (), 0
    found = whole[best_at : best_at + n_most]
    if -1 in found:
        found = found[: found.index(-1)]
    elif len(found) < n_most:
        found = [found[i % len(found)] for i in range(n_most)]
    return tuple(found), best


@given(text=TEXT, earlier=st.lists(TEXT, max_size=2), n_most=st.integers(1, 8))
def test_the_newest_of_the_longest_matches(text: str, earlier: list[str], n_most: int):
    texts = [ids(one) for one in earlier if one]
    lookup = PromptLookup(ids(text), 100, earlier=texts)
    proposal = lookup.propose(n_most)
    assert (proposal.tokens, proposal.n_matched if proposal else 0) == plainly(ids(text), texts, n_most)


@given(text=TEXT, cuts=st.lists(st.integers(1, 9), max_size=20), earlier=st.lists(TEXT, max_size=2))
def test_however_a_text_grows_what_is_proposed_follows_a_match_as_long(text: str, cuts: list[int], earlier: list[str]):
    texts = [ids(one) for one in earlier if one]
    lookup = PromptLookup((), 100, earlier=texts)
    at = 0
    for n in [*cuts, 60]:
        lookup.extend(ids(text)[at : at + n])
        at = min(at + n, len(text))
        assert lookup.n_tokens == at
        tokens, n_matched = plainly(ids(text)[:at], texts, 4)
        proposal = lookup.propose(4)
        assert (proposal.n_matched if proposal else 0) == (n_matched if tokens else 0)
        if at == len(text):
            break


def test_a_change_in_the_middle_costs_one_token():
    """As an edit of code does: the name differs, what follows is found again behind it."""
    prompt = "def foo(x): return foo_of(y) + 1; print(y)\n"
    lookup = PromptLookup(ids(prompt + "def bar"), 200)
    assert shown(lookup.propose(4)) != "(x):"
    lookup.extend(ids("(x"))
    assert shown(lookup.propose(10)) == "): return "


def test_what_runs_into_its_own_end_goes_round():
    assert shown(PromptLookup(ids("-=-=-="), 20).propose(7)) == "-=-=-=-"


def test_a_prediction_is_proposed_from_its_beginning_until_it_fails():
    lookup = PromptLookup(ids("Question?"), 100, earlier=[ids("old"), ids("The answer")], predicted=True)
    proposal = lookup.propose(5)
    assert (shown(proposal), proposal.n_matched) == ("The a", PREDICTED)
    lookup.extend(ids("The "))
    assert shown(lookup.propose(20)) == "answer"
    lookup.extend(ids("cat"))
    assert not lookup.propose(5)
    lookup.extend(ids("The an"))
    assert shown(lookup.propose(20)) == "swer"


def test_nothing_is_proposed_of_nothing():
    assert not PromptLookup((), 10).propose(4)
    assert not PromptLookup(ids("a"), 10).propose(4)
    assert not PromptLookup(ids("abab"), 10).propose(0)
