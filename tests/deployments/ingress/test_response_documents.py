"""Where an ingress keeps responses, by its configuration."""

import pytest

from cache_store import TierConfig
from deployments.config import HttpSpec
from deployments.ingress.deployment import _response_documents
from deployments.store_spec import StoreSpec


def test_they_lie_in_the_stores_tiers_with_the_stores_salt_and_the_fronts_bounds(tmp_path):
    store = StoreSpec(tiers=(TierConfig(str(tmp_path)),), salt="s")
    documents = _response_documents(store, HttpSpec(responses={"max_bytes": 5000, "ttl_s": 60}))
    assert not documents.put("", "resp_1", lambda: b"x", 5001)
    assert documents.put("", "resp_1", lambda: b"x", 1)
    documents.close(10)
    for salt, found in (("s", {"resp_1": b"x"}), ("", {})):
        again = _response_documents(StoreSpec(tiers=(TierConfig(str(tmp_path)),), salt=salt), HttpSpec())
        assert again.get("", ["resp_1"], 10) == found
        again.close()


@pytest.mark.parametrize("tiers", [(), (TierConfig("nosuchscheme://bucket/x"),)])
def test_without_a_tier_that_works_there_are_none_and_nothing_fails(tiers):
    assert _response_documents(StoreSpec(tiers=tiers), HttpSpec()) is None
