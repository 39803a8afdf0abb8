"""The schema registry's client against a server that answers as registries do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from schemas import avro
from serving.eventlog import LogUnavailable, LogUriError
from serving.eventlog.client_settings import ClientSettings
from serving.eventlog.registry import SchemaRegistry, open_registry

ANSWERS = {
    "/schemas/ids/1": (200, {"schema": json.dumps(avro.load("event"))}),
    "/schemas/ids/2": (200, {"schema": "syntax = proto3", "schemaType": "PROTOBUF"}),
    "/schemas/ids/3": (500, {}),
    "/schemas/ids/4": (200, {"other": 1}),
    "/schemas/ids/5": (200, {"schema": '"string"'}),
}


@pytest.fixture
def server():
    """(URL, requests seen as (path, Authorization))."""
    seen = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers["Authorization"]))
            code, body = ANSWERS.get(self.path, (404, {"error_code": 40403}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", seen
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_schema_is_asked_for_once(server):
    url, seen = server
    registry = open_registry({"schema.registry.url": url + "/", "schema.registry.basic.auth.user.info": "u:secret"})
    assert [registry.writer_schema(1) for _ in range(3)] == [avro.load("event")] * 3
    assert seen == [("/schemas/ids/1", "Basic dTpzZWNyZXQ=")]
    assert "secret" not in repr(registry)


def test_ids_that_are_unknown_or_no_avro_record_are_none_and_not_asked_again_at_once(server):
    url, seen = server
    registry = SchemaRegistry(url)
    for schema_id in (99, 2, 5, 99, 2, 5):
        assert registry.writer_schema(schema_id) is None
    assert len(seen) == 3


def test_a_registry_that_fails_is_unavailable_not_a_reason_to_refuse_records(server):
    registry = SchemaRegistry(server[0])
    for schema_id in (3, 4):
        with pytest.raises(LogUnavailable, match="schema registry"):
            registry.writer_schema(schema_id)
    with pytest.raises(LogUnavailable):
        SchemaRegistry("http://127.0.0.1:9").writer_schema(1)


@pytest.mark.parametrize("url", ["", "ftp://h", "host:1", "http://u:p@h/"])
def test_another_url_is_refused(url):
    with pytest.raises(LogUriError) as caught:
        SchemaRegistry(url)
    assert "u:p" not in str(caught.value)


def test_without_a_setting_there_is_none():
    assert open_registry({"bootstrap.servers": "x"}) is None


@pytest.mark.parametrize("name", ["schema.registry.basic.auth.user.info", "basic.auth.user.info"])
def test_the_registrys_password_is_not_told(name):
    settings = ClientSettings({name: "shop:hunter2", "client.id": "shop"})
    assert "hunter2" not in repr(settings) + str(settings) + settings.scrub("401 for shop:hunter2")
    assert "client.id=shop" in repr(settings) and settings[name] == "shop:hunter2"
