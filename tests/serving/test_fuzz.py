"""Whatever the API's own schema allows: never a fault, and always the answer that it tells of."""

import hypothesis
import pytest

from tests.serving import fakes

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
positive_data_acceptance = pytest.importorskip(
    "schemathesis.specs.openapi.checks"
).positive_data_acceptance


@pytest.fixture
def schema(tmp_path):
    """Of a server of its own: schemathesis ends the application with every test."""
    from marvel_jax.serving.app import create_app

    service = fakes.fruit_service(tmp_path)
    service.warm_up()  # /readyz is no fault then
    app = create_app(service, hosts=["testserver"])
    return schemathesis.openapi.from_asgi("/api/openapi.json", app)


OPERATIONS = (
    ("POST", "/api/search"),
    ("GET", "/api/search"),
    ("GET", "/api/item"),
    ("GET", "/api/image"),
    ("GET", "/api/collection"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
)


# Not by schemathesis' own decorator: it does not work in pytest 9.2 with its subtests.
@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_is_a_fault(schema, method, path, examples):
    operation = schema[path][method]

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def check(case):
        # All of schemathesis' checks but one: a schema cannot say that a query is not empty, or
        # how much is too much.
        case.call_and_validate(
            headers={"Host": "testserver"}, excluded_checks=[positive_data_acceptance]
        )

    check()
