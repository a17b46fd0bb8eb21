"""What of conversations this browser keeps: bounded, the oldest going first, nothing lost to one that is too large."""

import pytest

from tests.support.http_fakes import FakeModel, app_of, served
from tests.support.http_site import serving

KEEP = """async ([sizes, started]) => {
    const storage = await import("/page/chat/storage.js");
    const saved = sizes.map((size, index) =>
        storage.save({ id: `c${index}`, title: "t", updated: started + index, messages: { m: { content: "x".repeat(size) } }, selected: {} }));
    return [saved, storage.list().map(({ id }) => id)];
}"""


@pytest.fixture
def blank(page):
    with serving(app_of(served(FakeModel()))) as url:
        page.goto(url)
        yield page


@pytest.mark.parametrize(
    ("sizes", "saved", "kept"),
    [
        pytest.param([10, 10], [True] * 2, ["c1", "c0"], id="room for all"),
        pytest.param([10, 2_100_000], [True, False], ["c0"], id="too large"),
        pytest.param([1_500_000] * 5, [True] * 5, ["c4", "c3", "c2"], id="the quota"),
        pytest.param([10] * 205, [True] * 205, [f"c{n}" for n in range(204, 4, -1)], id="the number"),
    ],
)
def test_the_oldest_make_way(blank, sizes, saved, kept):
    assert blank.evaluate(KEEP, [sizes, 1000]) == [saved, kept]


def test_what_is_not_ours_or_cut_off_is_passed_over(blank):
    found = blank.evaluate(
        """async () => {
            localStorage.setItem("other", "1");
            for (const [name, text] of [["a", "{"], ["b", "null"], ["c", "{}"], ["d", '{"id": "d", "updated": 1}']])
                localStorage.setItem(`erllama.conversation.${name}`, text);
            const storage = await import("/page/chat/storage.js");
            return [storage.list().map(({ id }) => id), ["a", "b", "c", "d"].map(storage.load)];
        }"""
    )
    assert found == [["d"], [None] * 4]


def test_a_reply_that_was_being_made_when_the_page_went_away_is_lost(blank):
    state = blank.evaluate(
        """async () => {
            const storage = await import("/page/chat/storage.js");
            storage.save({ id: "a", updated: 1, messages: { m: { state: "streaming" }, n: { state: "done" } }, selected: {} });
            return Object.values(storage.load("a").messages).map(({ state }) => state);
        }"""
    )
    assert state == ["lost", "done"]
