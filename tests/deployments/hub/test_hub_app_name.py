"""What an application's name tells is what it was made of."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.hub.app_name import HubAppName, hub_prefix

WORD = st.text("abcdef0123456789", min_size=1)


@given(st.text("az09.-_", min_size=1), WORD, WORD, WORD, st.sampled_from(["erllama", "a.b", "x.hub.y"]))
def test_a_name_is_read_back(model, build, node_id, started, app):
    name = HubAppName(model, build, node_id, started)
    assert HubAppName.parse(name.text_for(app), app) == name
    assert name.text_for(app).startswith(hub_prefix(app))
