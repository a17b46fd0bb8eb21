"""How the page is served: to whom, under which policy, and that all of it is there."""

import re
import tomllib
from pathlib import Path

import pytest

from deployments.page.files import page_files
from deployments.page.scope import accepts_html
from tests.support.http_fakes import FakeModel, app_of, http_client, served

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]
STATIC = ROOT / "deployments" / "page" / "static"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())


def app(**options):
    return app_of(served(FakeModel()), **options)


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER, True),
        ("TEXT/HTML", True),
        ("application/json, text/html ; q=0.1", True),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        ("text/html;q=0", False),
        ("text/html; q=0.000, */*", False),
        ("text/htmlx", False),
        (";;,=,;q=", False),
    ],
)
async def test_the_page_is_for_who_asks_for_html(accept, is_page):
    assert accepts_html(accept) is is_page
    async with http_client(app(), accept=accept) as client:
        reply = await client.get("/")
    assert reply.headers["content-type"] == ("text/html; charset=utf-8" if is_page else "text/plain; charset=utf-8")
    assert reply.text.startswith("<!doctype html>") if is_page else reply.text == "Ollama is running"
    assert reply.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", FILES)
async def test_every_file_is_served_with_its_type_and_the_policy(path):
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    async with http_client(app()) as client:
        reply = await client.get(f"/page/{path}")
    assert reply.status_code == 200
    assert reply.content == (STATIC / path).read_bytes()
    assert reply.headers["content-type"].split(";")[0] == kind[path.rpartition(".")[2]]
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|\*|https?:", reply.headers["content-security-policy"])


async def test_a_file_that_the_browser_has_is_not_sent_again():
    async with http_client(app()) as client:
        first = await client.get("/page/app.js")
        for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
            again = await client.get("/page/app.js", headers={"if-none-match": tag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert (await client.get("/page/app.js", headers={"if-none-match": '"other"'})).content == first.content
        assert (await client.get("/page/page.css")).headers["etag"] != first.headers["etag"]


async def test_the_files_need_no_key_and_what_they_ask_for_does():
    async with http_client(app(api_keys=("secret",)), accept=BROWSER) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/page/app.js")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/", headers={"accept": "*/*"})).status_code == 401


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nope.js", "/page/../files.py", "/page/%2e%2e/files.py", "/page/chat"]
)
async def test_nothing_else_lies_below_the_page(path):
    async with http_client(app()) as client:
        reply = await client.get(path, headers={"accept": BROWSER})
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/json")


async def test_head_has_the_length_and_no_body():
    async with http_client(app(), accept=BROWSER) as client:
        get, head = await client.get("/"), await client.head("/")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(get.content)))


async def test_below_a_prefix_the_page_has_a_slash_at_its_end():
    inner = app()

    async def mounted(scope, receive, send):
        await inner({**scope, "root_path": "/a/b"}, receive, send)

    async with http_client(mounted, accept=BROWSER) as client:
        bare = await client.get("/a/b")
        assert (bare.status_code, bare.headers["location"]) == (307, "b/")
        assert (await client.get("/a/b/")).text.startswith("<!doctype html>")
        assert (await client.get("/a/b/page/app.js")).status_code == 200


def test_the_package_has_every_file():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path.relative_to(STATIC).as_posix()
        for pattern in patterns["deployments.page"]
        for path in STATIC.parent.glob(pattern)
        if path.is_file()
    }
    assert packaged == set(FILES) == set(page_files())


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith((".html", ".js"))])
def test_a_file_asks_for_nothing_from_elsewhere_and_imports_what_is_there(path):
    text = (STATIC / path).read_text()
    for name in re.findall(r'^import .*?"(.+?)";', text, re.MULTILINE | re.DOTALL):
        assert ((STATIC / path).parent / name).resolve().is_relative_to(STATIC), name
        assert ((STATIC / path).parent / name).is_file(), name
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"<style|style=|<script(?![^>]* src=)", text) or path.endswith(".js")
