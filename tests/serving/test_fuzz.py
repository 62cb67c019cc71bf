"""Whatever the API's own schema allows: never a fault, and always the answer that it tells of."""

import hypothesis
import pytest

from marvel_jax.serving.limits import Limits
from marvel_jax.serving.service import SearchService
from tests.serving import fakes

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    from marvel_jax.serving.app import create_app

    collection = fakes.FakeCollection(tmp_path_factory.mktemp("fuzz"), fakes.FRUIT)
    service = SearchService(
        collection,
        fakes.FakeEmbedder(),
        reranker=fakes.FakeReranker(),
        limits=Limits(rate=1e6, burst=1e6),
    )
    app = create_app(service, hosts=["testserver"])
    yield schemathesis.openapi.from_asgi("/api/openapi.json", app)
    service.close()


fuzzed = schemathesis.pytest.from_fixture("schema").exclude(
    path="/readyz"
)  # 503 until warm, which is its answer


@fuzzed.parametrize()
@hypothesis.settings(max_examples=8, derandomize=True, deadline=None, database=None)
def test_no_request_is_a_fault(case):
    answer = case.call(headers={"Host": "testserver"})
    case.validate_response(answer)  # schemathesis' own checks, all of them
