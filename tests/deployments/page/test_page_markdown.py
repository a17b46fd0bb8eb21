"""Markdown of replies: what it becomes, that nothing in it can become more than text, and that a text which
grows is shown as one that came whole.
"""

import random

import pytest
from playwright.sync_api import Page

from tests.support.http_fakes import FakeModel, app_of, served
from tests.support.http_site import serving

# Attributes and classes are left out.
CASES = {
    "a *b* **c** _d_ ~~e~~ `f`": "<p>a <em>b</em> <strong>c</strong> <em>d</em> <del>e</del> <code>f</code></p>",
    "# One\ntwo\nthree": "<h3>One</h3><p>two\nthree</p>",
    "- a\n- b\n  - c\n\nd": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>",
    "3. a\n4. b": "<ol><li>a</li><li>b</li></ol>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a | b\n--|--\n1 | `2`": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table></div>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "snake_case_name 2 * 3 * 4 5*6": "<p>snake_case_name 2 * 3 * 4 5*6</p>",
    r"\*a\* `\*`": r"<p>*a* <code>\*</code></p>",
    "<b>a</b> &amp;": "<p>&lt;b&gt;a&lt;/b&gt; &amp;amp;</p>",
    "![pic](https://e.com/x.png)": "<p><a>pic</a></p>",
    "[x](javascript:alert(1)) [y](data:text/html,z)": "<p><span>x</span>) <span>y</span></p>",
    "see https://e.com/a_b. Or": "<p>see <a>https://e.com/a_b</a>. Or</p>",
    "**open": "<p>**open</p>",
    "``a ` b``": "<p><code>a ` b</code></p>",
}
PIECES = ["a", " ", "\n", "\n\n", "*", "**", "_", "`", "```", "```js\n", "[", "](", ")", "!", "https://e.com/", "javascript:", "> ", "- ", "1. ", "  ", "#", "# ", "|", "|--|--|\n", "<script>", "<img src=x onerror=alert(1)>", "\\", "~~", "---\n", "\u202e"]  # fmt: skip
SHOWN = """async (texts) => {
    const { render } = await import("/page/chat/markdown.js");
    return texts.map((text) => {
        const box = document.createElement("div");
        render(box, text);
        for (const node of box.querySelectorAll(".code-head")) node.remove();
        const html = (node) => node.nodeType === 3 ? node.data.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")
            : node.tagName === "HR" ? "<hr>" : `<${node.localName}>${[...node.childNodes].map(html).join("")}</${node.localName}>`;
        return [...box.childNodes].map(html).join("");
    });
}"""


@pytest.fixture
def blank(page: Page):
    with serving(app_of(served(FakeModel()))) as url:
        page.goto(url)
        yield page


def test_it_becomes_nodes(blank):
    assert dict(zip(CASES, blank.evaluate(SHOWN, list(CASES)), strict=True)) == CASES


def made_up(n: int) -> list[str]:
    draw = random.Random(13)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 30))) for _ in range(n)]


def test_a_text_that_grows_is_shown_as_one_that_came_whole(blank):
    differing = blank.evaluate(
        """async (texts) => {
            const { render } = await import("/page/chat/markdown.js");
            return texts.filter((text) => {
                const [whole, grown] = [document.createElement("div"), document.createElement("div")];
                render(whole, text);
                for (let end = 1; end <= text.length; end += 3) render(grown, text.slice(0, end));
                render(grown, text);
                return !whole.isEqualNode(grown);
            });
        }""",
        made_up(300),
    )
    assert differing == []


def test_nothing_but_text_and_safe_links_comes_out(blank):
    found = blank.evaluate(
        """async (texts) => {
            const { render } = await import("/page/chat/markdown.js");
            const seen = new Set();
            for (const text of texts) {
                const box = document.createElement("div");
                render(box, text);
                for (const node of box.querySelectorAll("*")) {
                    seen.add(node.localName);
                    for (const { name, value } of node.attributes) seen.add(name === "href" ? new URL(value).protocol : name);
                }
            }
            return [...seen].sort();
        }""",
        made_up(2000),
    )
    tags = {"a", "blockquote", "br", "button", "code", "del", "div", "em", "h3", "h4", "hr", "li", "ol", "p", "pre", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}  # fmt: skip
    attributes = {"class", "https:", "rel", "start", "tabindex", "target", "type"}
    assert set(found) <= tags | attributes
    assert {"a", "https:", "code", "table", "blockquote"} <= set(found)


def test_a_hostile_text_ends(blank):
    """It would take minutes or overflow the stack if some mark were looked for from every other one."""
    pieces = [
        "*",
        "_a ",
        " _a",
        "`",
        "[",
        "[a](",
        "> ",
        "- ",
        "  - ",
        "|",
        "**a",
        "~~",
        "\\",
        "http",
        "a\n",
        "a|b\n-|-\n",
    ]
    for piece in pieces:
        assert blank.evaluate(SHOWN, [piece * (100_000 // len(piece))])[0]
