"""The view of the cluster in a real browser: prefixes of a real replica, snapshots that the test changes."""

import copy

import pytest
from playwright.sync_api import Page, expect

from tests.support.http_fakes import FakeModel, app_of, served
from tests.support.http_site import serving
from tests.support.page_cluster import CLUSTER, REQUESTS, WHY, StubSite, WithCluster, after_eviction

POLL_MS = 2100  # a little more than the page waits between two snapshots


def show(page: Page, url: str) -> None:
    """The view, with a clock that a test may put forward."""
    page.clock.install()
    page.goto(f"{url}#cluster")


def tile(page: Page, name: str):
    return page.locator(".tile", has=page.locator("dt", has_text=name)).locator("dd")


def chart(page: Page, title: str):
    return page.locator("figure.chart", has=page.locator("figcaption", has_text=title))


def test_an_eviction_between_two_polls_is_seen(page):
    cluster = WithCluster(app_of(served(FakeModel())), CLUSTER)
    with serving(cluster) as url:
        show(page, url)
        expect(tile(page, "Evictions")).to_contain_text("0")
        tiers = chart(page, "KV in the tiers").get_by_role("img")
        expect(tiers).to_have_attribute(
            "aria-label", "KV in the tiers: ram_file 2.0 GiB of 4.0 GiB, s3 5.0 GiB"
        )  # two nodes' RAM, one bucket
        expect(chart(page, "Requests by hit").locator(".legend")).to_have_text("")  # no difference yet
        cluster.snapshot = after_eviction()
        page.clock.fast_forward(POLL_MS)
        expect(tile(page, "Evictions")).to_have_text("31.0 GiB given back")
        expect(tiers).to_have_attribute("aria-label", "KV in the tiers: ram_file 1.0 GiB of 4.0 GiB, s3 5.0 GiB")
        expect(page.get_by_role("region", name="Evictions by the scheduler").locator("tbody tr")).to_have_text(
            ["1 s agodemopressurestore1.0 GiB"]
        )
        expect(chart(page, "Requests by hit").locator(".legend li")).to_have_text(
            ["cold 0", "exact:live 5", "partial:disk 0"]
        )
        expect(chart(page, "Prompt tokens").locator(".legend li")).to_have_text(["cached 800", "computed 100"])
        expect(chart(page, "Time saved").locator(".legend li")).to_have_text(["prefill 1.50 s"])
        expect(chart(page, "Saves by reason").locator(".legend li")).to_have_text(["cold 0", "evict 2", "final 0"])
        expect(tile(page, "Prompt tokens cached")).to_have_text("79 %7,800 of 9,900")
        expect(tile(page, "Pressure")).to_have_text("highon 1 node")
        models = page.get_by_role("region", name="Models and replicas")
        expect(models.locator("tr", has_text="a on 10.0.0.1")).to_contain_text("2 of 4")
        expect(models.locator(".sequences li")).to_have_text(
            ["generating 812 tokens, 700 cached", "prefilling 90 tokens"]
        )
        expect(models.locator("tr", has_text="broken")).to_contain_text("its file is damaged")


def test_a_replica_that_ends_takes_nothing_away_and_a_new_one_counts_from_zero(page):
    cluster = WithCluster(app_of(served(FakeModel())), CLUSTER)
    with serving(cluster) as url:
        show(page, url)
        expect(tile(page, "Replicas")).to_contain_text("2")
        later = after_eviction()
        replica = later["models"][0]["replicas"][0]
        later["models"][0]["replicas"] = [
            replica | {"id": "c", "hits": {"exact:live": 2}, "cached_tokens": 10, "prompt_tokens": 30}
        ]
        cluster.snapshot = later
        page.clock.fast_forward(POLL_MS)
        expect(tile(page, "Replicas")).to_contain_text("1")
        expect(chart(page, "Requests by hit").locator(".legend li")).to_have_text(["exact:live 2"])
        expect(chart(page, "Prompt tokens").locator(".legend li")).to_have_text(["cached 10", "computed 20"])


@pytest.mark.parametrize(
    "snapshot",
    [
        {"object": "cluster"},
        dict.fromkeys(CLUSTER),
        CLUSTER | {"scheduler": None, "nodes": [{"id": "n"}], "models": [{"id": "m", "state": "ready", "replicas": [{"id": "r"}]}], "tiers": [{"name": "disk"}]},
    ],
    ids=["empty", "null", "bare"],
)  # fmt: skip
def test_what_a_snapshot_does_not_know_is_left_out(page, snapshot):
    with serving(WithCluster(app_of(served(FakeModel())), snapshot)) as url:
        show(page, url)
        expect(tile(page, "Prompt tokens cached")).to_contain_text("0 of 0")
        assert "NaN" not in page.locator(".cluster").inner_text()
        assert "undefined" not in page.locator(".cluster").inner_text()


def test_parts_that_did_not_answer_are_named(page):
    snapshot = copy.deepcopy(CLUSTER) | {"unanswered": ["model demo: it hangs"]}
    with serving(WithCluster(app_of(served(FakeModel())), snapshot)) as url:
        show(page, url)
        expect(page.locator(".cluster > .notice")).to_have_text("Not all parts answered: model demo: it hangs")


def test_prefixes_are_a_tree_to_pin_export_and_evict(page, tmp_path):
    with serving(WithCluster(StubSite(tmp_path), CLUSTER), lifespan="on") as url:
        show(page, url)
        panel = page.get_by_role("region", name="Stored prefixes")
        leaves = panel.locator(".leaf")
        expect(leaves).to_have_count(2)
        expect(panel.locator("summary")).to_have_count(1)  # what both begin with is told once
        expect(panel.locator("summary")).to_contain_text("2 branches")
        first = leaves.filter(has_text="760 tokens")
        first.get_by_role("button", name="Pin", exact=True).click()
        expect(first.locator(".badge")).to_contain_text("pin ")
        expect(first.get_by_role("button", name="Evict")).to_be_disabled()
        with page.expect_download() as download:
            first.get_by_role("button", name="Export").click()
        assert len(download.value.path().read_bytes()) > 760
        first.get_by_role("button", name="Unpin").click()
        first.get_by_role("button", name="Evict").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(leaves).to_have_count(2)
        first.get_by_role("button", name="Evict").click()
        page.get_by_role("dialog").get_by_role("button", name="Evict").click()
        expect(leaves).to_have_count(1)
        expect(leaves).to_contain_text("800 tokens")
        expect(page.locator("#announcer")).to_have_text("The prefix was evicted.")


def test_an_admin_key_is_asked_for(page):
    cluster = WithCluster(
        app_of(served(FakeModel()), api_keys=({"key": "secret", "name": "ops", "admin": True},)), CLUSTER, key="secret"
    )
    with serving(cluster) as url:
        show(page, url)
        page.get_by_role("button", name="Enter a key").click()
        box = page.get_by_role("dialog", name="API key")
        box.get_by_label("Key").fill("secret")
        box.get_by_role("button", name="Use it").click()
        expect(tile(page, "Running")).to_contain_text("2")
        expect(page.locator(".cluster > .notice")).to_be_hidden()


def test_a_server_that_goes_away_is_told_and_found_again(page):
    cluster = WithCluster(app_of(served(FakeModel())), CLUSTER)
    with serving(cluster) as url:
        show(page, url)
        expect(tile(page, "Running")).to_contain_text("2")
        page.context.set_offline(True)
        page.clock.fast_forward(POLL_MS)
        expect(page.locator(".cluster > .notice")).to_contain_text("The server cannot be reached.")
        page.context.set_offline(False)
        page.clock.fast_forward(POLL_MS)
        expect(page.locator(".cluster > .notice")).to_be_hidden()
        page.get_by_role("link", name="Chat").click()
        expect(page.locator("#prompt")).to_be_visible()
        polled = cluster.n_polls
        page.clock.run_for(3 * POLL_MS)
        assert cluster.n_polls == polled, "a view that is not shown does not ask"


def test_prefixes_fold_without_loss(page):
    """Whatever prefixes there are, each is a leaf once, and the texts down to it are its own."""
    with serving(app_of(served(FakeModel()))) as url:
        page.goto(url)
        lost = page.evaluate(
            """async () => {
                const { fold, sumOf } = await import("/page/cluster/prefix_tree.js");
                let seed = 7;
                const draw = (n) => (seed = (seed * 48271) % 2147483647) % n;
                const text = () => Array.from({ length: draw(5) }, () => ["a".repeat(16), "b".repeat(16), "a", "<b>"][draw(4)]).join("");
                const leaves = (node, above) => node.prefix
                    ? [[above + node.text, node.prefix]] : node.children.flatMap((child) => leaves(child, above + node.text));
                const problems = [];
                for (let round = 0; round < 300; round += 1) {
                    const all = Array.from({ length: draw(12) }, (_, key) => ({ key, text: text(), tokens: draw(100), bytes: 1, hits: 1 }));
                    const tree = fold(all);
                    const found = tree.flatMap((node) => leaves(node, ""));
                    const same = found.every(([path, prefix]) => path === prefix.text);
                    const once = new Set(found.map(([, { key }]) => key)).size === all.length && found.length === all.length;
                    const sums = tree.map(sumOf).reduce((n, one) => n + one.n, 0) === all.length;
                    if (!(same && once && sums)) problems.push(JSON.stringify(all));
                }
                return problems;
            }"""
        )
    assert lost == []


def test_a_request_tells_why_its_prompt_was_computed(page):
    answers = {"requests": REQUESTS, "requests/req-1/why": WHY}
    with serving(WithCluster(app_of(served(FakeModel())), CLUSTER, **answers)) as url:
        show(page, url)
        panel = page.get_by_role("region", name="Recent requests")
        expect(panel.locator("tbody tr")).to_have_count(2)
        expect(panel.locator("tbody tr").first).to_contain_text("33 %")
        panel.get_by_role("button", name="Why: request req-1").click()
        box = page.get_by_role("dialog", name="Why it was computed")
        expect(box).to_contain_text("the rule date is off")
        expect(box).to_contain_text("300 of 900 tokens cached from live · known up to token 301 (ram_file) · 1.52 s")
        expect(box.locator("pre")).to_have_text(
            ["Today's date: ", "Tuesday, and <b>more</b>", "Monday, and <b>more</b>"]
        )
        page.keyboard.press("Escape")
        panel.get_by_role("button", name="Why: request req-2").click()
        expect(box).to_contain_text("Nothing is remembered of this request.")


def test_what_was_not_known_is_no_zero_in_a_line(page):
    unknown = copy.deepcopy(CLUSTER)
    unknown["nodes"][0]["memory_used_bytes"] = None
    cluster = WithCluster(app_of(served(FakeModel())), unknown)
    with serving(cluster) as url:
        show(page, url)
        lines = chart(page, "Memory used").locator("path.stroke")
        expect(lines).to_have_count(1)
        cluster.snapshot = after_eviction()
        page.clock.fast_forward(POLL_MS)
        expect(lines).to_have_count(2)
        assert "L" not in lines.first.get_attribute("d"), "one point as yet"
        assert "L" in lines.last.get_attribute("d")


def test_sums_over_time_lose_nothing_and_know_of_pauses(page):
    with serving(app_of(served(FakeModel()))) as url:
        page.goto(url)
        found = page.evaluate(
            """async () => {
                const { binned } = await import("/page/cluster/samples.js");
                return [binned([1, 2, 3], [0, 1, 10], 5), binned([4], [7], 1), binned([1, 1, 1, 1], [0, 1, 2, 3], 2), binned([], [], 0)];
            }"""
        )
    assert found == [[3, 0, 0, 0, 3], [4], [2, 2], []]


def test_what_a_real_replica_tells_is_shown(page, tmp_path):
    with serving(StubSite(tmp_path), lifespan="on") as url:
        show(page, url)
        expect(tile(page, "Replicas")).to_contain_text("1")
        models = page.get_by_role("region", name="Models and replicas")
        expect(models.locator("tr", has_text="0 of 3")).to_contain_text("4,096")
        expect(chart(page, "KV in the tiers").locator(".legend")).to_contain_text("of 1.0 GiB")
        expect(page.get_by_role("region", name="Requests by hit").locator("tbody tr")).not_to_have_count(0)
        requests = page.get_by_role("region", name="Recent requests")
        expect(requests.locator("tbody tr")).to_have_count(2)
        requests.get_by_role("button", name="Why").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("tokens cached")


def test_models_of_the_hub_are_listed_with_their_state(page):
    standing = {"phase": "failed", "memory_bytes": 0, "node": "", "reason": "no node has the memory"}
    hub = {"object": "list", "data": [{"id": "qwen:0.5b", "size": 1 << 29, "standing": standing}, {"id": "bare"}]}
    with serving(WithCluster(app_of(served(FakeModel())), CLUSTER, hub=hub)) as url:
        show(page, url)
        page.clock.fast_forward(POLL_MS)  # the list of the hub is asked for behind the snapshot
        rows = page.get_by_role("region", name="Hub").locator("tbody tr")
        expect(rows).to_contain_text(["qwen:0.5bfailed512 MiB", "bareunloaded"])
        expect(rows.first).to_contain_text("no node has the memory")
        page.keyboard.press("g")
        page.keyboard.press("c")
        expect(page.locator("#prompt")).to_be_visible()
