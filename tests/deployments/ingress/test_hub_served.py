"""A model of the hub as the ingress serves it: its defaults, its system text and its template, from the
manifest.
"""

from __future__ import annotations

import pytest

from deployments.access.tenant import ANONYMOUS
from deployments.config import BuildArgs
from deployments.ingress.deployment import _Served
from erllama.chat.transcript_book import TranscriptBook
from erllama.demo import demo_model_path
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub

pytestmark = pytest.mark.anyio


async def test_what_a_manifest_says_holds_where_a_request_says_nothing(tmp_path):
    hub = Hub(HubConfig(dir=tmp_path))
    list(hub.pull(str(demo_model_path()), "tiny"))
    parameters = {"num_predict": 7, "stop": ["<end>"], "temperature": 0.25, "mirostat": 2}
    template = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    hub.create("pirate", "tiny", system="Arr.", template=template, parameters=parameters)
    config = BuildArgs(hub={"enabled": True, "dir": str(tmp_path), "defaults": {"sampling": {"top_k": 9}}})
    library = _Served(config, TranscriptBook()).library(object())
    tiny, pirate = (library.find(name, ANONYMOUS) for name in ("tiny", "Pirate:latest"))
    assert (tiny.id, pirate.id, pirate.on_demand) == ("tiny", "pirate", True)
    said, nothing = pirate.prompts.defaults, tiny.prompts.defaults
    assert (said.max_tokens, said.stop, said.sampling.temperature, said.sampling.top_k) == (7, ("<end>",), 0.25, 9)
    assert (nothing.max_tokens, nothing.stop, nothing.sampling.top_k) == (None, (), 9)
    hi = [{"role": "user", "content": "hi"}]
    try:
        assert pirate.prompts.render_text(hi, None, {}) == "[system: Arr.][user: hi]"
        assert "Arr." not in tiny.prompts.render_text(hi, None, {})
    finally:
        pirate.prompts.close()
        tiny.prompts.close()
