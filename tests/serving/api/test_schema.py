"""/openapi.json against a real server: schemathesis makes requests from it, right and wrong; every answer is as described."""

import httpx
import pytest
import requests
from api_world import client_of, publish
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving_world import Server, World

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'beamrec[dev]'")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

CHECKS = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
          checks.response_schema_conformance, checks.response_headers_conformance, checks.negative_data_rejection,
          checks.unsupported_method]
EXAMPLES, URI_TOO_LONG = 20, 414


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("described")
    world = publish(World(root / "workspace"))
    server = Server(world.workspace.root, "--log", f"dir:{root / 'log'}")
    yield server
    assert server.stop() == 0
    assert not [line for line in server.log if '"request failed"' in line]
    world.store.close()


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_answers_are_as_described(served, mode):
    described = schemathesis.openapi.from_dict(httpx.get(f"{served.url}/openapi.json").json())
    wrong, operations = [], [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 20
    with requests.Session() as session:
        for operation in operations:
            @settings(max_examples=EXAMPLES, phases=(Phase.generate,), derandomize=True, deadline=None, database=None,
                      suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def holds(case):
                case.headers.pop("Authorization", None)  # a made-up key would be refused before anything else is looked at
                answer = case.call(base_url=served.url, session=session)
                if answer.status_code != URI_TOO_LONG:  # said by the server before any route
                    case.validate_response(answer, checks=CHECKS)

            try:
                holds()
            except Unsatisfiable:  # nothing of it can be wrong
                pass
            except BaseExceptionGroup as error:
                wrong.append(f"{operation.label}: {error}")
    assert not wrong, "\n\n".join(wrong)


def test_each_operation_says_which_role_it_needs(tmp_path):
    world = publish(World(tmp_path / "workspace"))
    open_routes = {("/healthz", "get"), ("/readyz", "get"), ("/metrics", "get")}
    wants = {("/v1/recommendations", "get"): "read", ("/v1/events", "post"): "write_events",
             ("/v1/features/{entity}/{entity_id}", "put"): "write_features", ("/v1/models/flip", "post"): "admin"}
    for anonymous, also in (((), []), (("read", "write_events", "write_features", "admin"), [{}])):
        with client_of(world, anonymous=anonymous) as client:
            document = client.get("/openapi.json").json()
        named = {(path, method): operation.get("security") for path, methods in document["paths"].items()
                 for method, operation in methods.items()}
        assert {call for call, said in named.items() if not said} == open_routes
        for call, role in wants.items():
            assert named[call] == [{"key": [role]}, *also], call
    world.store.close()
