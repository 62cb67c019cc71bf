"""An application on a fake collection."""

import base64

import pytest

from tests.serving import fakes

# Imported before the fakes' users: without it nothing here can run, with it all does.
pytest.importorskip("fastapi", reason="the web framework of `marvel serve` is not installed")


@pytest.fixture
def collection(tmp_path):
    return fakes.FakeCollection(tmp_path, fakes.FRUIT)


@pytest.fixture
def serve(collection):
    """serve(...) gives a client of an application and its service; both end with the test."""
    from starlette.testclient import TestClient

    from marvel_jax.serving.app import create_app
    from marvel_jax.serving.limits import Limits
    from marvel_jax.serving.service import SearchService

    clients = []

    def make(*, embedder=None, wait=True, reranker=None, hosts=(), said=None, **limits):
        service = SearchService(
            collection,
            embedder or fakes.FakeEmbedder(),
            reranker=reranker,
            limits=Limits(**({"rate": 1000, "burst": 1000} | limits)),
            say=(lambda line: None) if said is None else said.append,
        )
        app = create_app(service, hosts=hosts)
        client = TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        client.service = service
        if wait:
            fakes.until(lambda: service.warm)
        return client

    yield make
    for client in clients:  # a test that failed meanwhile may have left it waiting
        client.service.embedder.may_go.set()
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def red():
    """A red picture, in base64."""
    return base64.b64encode(fakes.picture((210, 20, 20))).decode()
