"""URLs, output paths and storage options. Calls to a store are tested against a real one."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.storage import (
    RemotePath,
    local_path,
    read_bytes,
    set_options,
    shown_options,
    storage_path,
    writable_path,
    writable_paths,
)
from vmae_data.storage.clients import open_client
from vmae_data.storage.store_options import VARIABLE, access_of


@pytest.fixture(autouse=True)
def _no_access(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))


def test_urls_are_joined_and_named_as_paths_are():
    url = storage_path("s3://bucket//a/b/shard-000001.tar/")
    assert url == RemotePath("s3://bucket", "a/b/shard-000001.tar")
    assert (url.scheme, url.container, url.name, url.stem, url.suffix) == (
        "s3", "bucket", "shard-000001.tar", "shard-000001", ".tar",
    )  # fmt: skip
    assert str(url.parent / "index.json") == "s3://bucket/a/b/index.json"
    assert str(url.with_suffix(".json")) == "s3://bucket/a/b/shard-000001.json"
    assert (
        str(storage_path("s3://bucket")) == "s3://bucket" and str(storage_path("s3://bucket") / "x") == "s3://bucket/x"
    )
    assert storage_path("HTTP://host:90/x").root == "http://host:90"
    assert storage_path("file:///a/b") == Path("/a/b") and storage_path("a:b/c") == Path("a:b/c")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "unknown scheme"),
        ("s3:///x", "names no bucket"),
        ("https://user:hunter2@host/x", "--storage-option"),
        ("https://host/x?sig=hunter2", "--storage-option"),
        ("s3://bucket/x?X-Amz-Signature=hunter2", "--storage-option"),
        ("s3://bucket/../x", "has .. in it"),
        ("http://host:x/y", "is not a valid HOST or HOST:PORT"),
        ("http://host:99999/y", "is not a valid HOST or HOST:PORT"),
        ("http://host:80:3", "is not a valid HOST or HOST:PORT"),
    ],
)
def test_an_invalid_url_is_refused_without_its_secrets(url, message):
    with pytest.raises(MisuseError, match=message) as caught:
        storage_path(url)
    assert "hunter2" not in str(caught.value)


def test_local_path_refuses_a_remote_url():
    with pytest.raises(MisuseError, match="path of this machine"):
        local_path("s3://bucket/x")


def test_options_reach_the_store_and_secrets_are_not_shown():
    set_options(["endpoint=http://host:9", "secret_access_key=hunter2", "give_up=7", "read_timeout=2"])
    set_options(["header.Authorization=Bearer hunter3"])
    access = access_of("s3")
    assert access.config == {"endpoint": "http://host:9", "secret_access_key": "hunter2"}
    assert access.give_up == 7 and access.client["allow_http"] is True
    assert access.client["read_timeout"].total_seconds() == 2
    assert "default_headers" not in access.client
    assert access_of("https").client["default_headers"] == {"authorization": "Bearer hunter3"}
    assert "hunter" not in json.dumps(shown_options()) and shown_options()["endpoint"] == "http://host:9"


@pytest.mark.parametrize("option", ["endpoint", "=x", "give_up=soon", "timeout=-1", "read_timeout=nan"])
def test_an_invalid_option_is_refused(option):
    with pytest.raises(MisuseError, match="--storage-option"):
        set_options([option])
        access_of("s3")


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:9000",
        "localhost:9000",
        "notaurl",
        "http://u:hunter2@host:9",
        "http://host:9/x?sig=hunter2",
        "http://a b",
    ],
)
def test_an_endpoint_that_is_no_url_is_refused_before_the_client_gets_it(endpoint, monkeypatch):
    set_options([f"endpoint={endpoint}"])
    with pytest.raises(MisuseError, match="expected http://HOST:PORT") as caught:
        access_of("s3")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(MisuseError, match="expected http://HOST:PORT"):
        access_of("s3")


def test_a_key_with_a_line_end_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2\r")
    with pytest.raises(MisuseError, match="AWS_SESSION_TOKEN: has a line end") as caught:
        access_of("s3")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("root_certificate=/no/pem", "root_certificate = /no/pem: can't be read"),
        ("header.bad name=x", "can't be used for https://host"),
    ],
)
def test_client_options_that_can_not_be_used_are_one_line(option, message):
    set_options([option])
    with pytest.raises(MisuseError, match=message):
        read_bytes(storage_path("https://host/x"))


def test_an_option_that_is_not_known_to_be_harmless_is_not_shown():
    set_options(["acess_key=hunter2", "region=r1"])
    assert shown_options() == {"acess_key": "…", "region": "r1"}


def test_a_profile_gives_keys_and_the_environment_overrides_the_default_one(monkeypatch, tmp_path):
    home = tmp_path / ".aws"
    home.mkdir()
    (home / "config").write_text("[default]\nregion = r1\n[profile lab]\nregion = r2\nendpoint_url = http://host:9\n")
    (home / "credentials").write_text("[lab]\naws_access_key_id = K\naws_secret_access_key = S%%\n")
    assert access_of("s3").config == {"region": "r1"}
    monkeypatch.setenv("AWS_PROFILE", "lab")
    access = access_of("s3")
    assert access.config == {
        "region": "r2",
        "endpoint": "http://host:9",
        "access_key_id": "K",
        "secret_access_key": "S%%",
    }
    assert access.client["allow_http"] is True
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    assert access_of("s3").config == {}


def test_a_profile_that_needs_another_tool_names_the_command_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[profile lab]\nsso_session = x\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with pytest.raises(VmaeError, match="export-credentials --profile lab"):
        access_of("s3")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(MisuseError, match="nobody"):
        access_of("s3")
    (tmp_path / "config").write_text("hunter2\n")
    with pytest.raises(MisuseError) as caught:
        access_of("s3")
    assert "hunter2" not in str(caught.value)


def test_azure_needs_an_account_and_names_the_url():
    with pytest.raises(MisuseError, match="az://c/set/x: no account is named. Set AZURE_STORAGE_ACCOUNT_NAME"):
        read_bytes(storage_path("az://c/set/x"))


def test_a_web_server_ignores_a_buckets_options_and_refuses_those_that_no_store_knows():
    url = storage_path("http://127.0.0.1:9")
    set_options(["endpoint=http://host:9", "secret_access_key=hunter2", "account_key=hunter2", "skip_signature=true"])
    open_client(url)
    set_options(["endpiont=hunter2"])
    with pytest.raises(MisuseError, match="--storage-option endpiont: unknown for every store") as caught:
        open_client(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"])
def test_a_missing_key_file_of_google_is_named_and_a_key_instead_of_it_is_not_shown(name, monkeypatch):
    monkeypatch.setenv(name, "/nope.json")
    with pytest.raises(MisuseError, match=f"gs://c/x: {name} = /nope.json: no such file"):
        read_bytes(storage_path("gs://c/x"))
    monkeypatch.setenv(name, '{"private_key": "hunter2"}' + "x" * 300)
    with pytest.raises(MisuseError, match=f"{name} = …: no such file") as caught:
        read_bytes(storage_path("gs://c/x"))
    assert "hunter2" not in str(caught.value)


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403)

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def refusing_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "named"), [("gs://c/x", "GOOGLE_"), ("az://c/x", "AZURE_"), ("http://h/x", "header"), ("s3://c/x", "AWS_")]
)
def test_a_refusal_names_the_credentials_of_that_kind_of_store(url, named, refusing_server, monkeypatch):
    monkeypatch.setattr("vmae_data.storage.retry.FIRST_WAIT", 0.01)
    google = {"gcs_base_url": refusing_server, "disable_oauth": True}
    google |= {"client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(google))
    set_options(["allow_http=true", "account_name=a"] if url.startswith("az") else ["allow_http=true"])
    set_options(["skip_signature=true", f"endpoint={refusing_server}"] if url[:2] in ("s3", "az") else [])
    with pytest.raises(DataError, match="refused: status 403") as caught:
        read_bytes(storage_path(url.replace("http://h", refusing_server)))
    assert [name for name in ("AWS_", "GOOGLE_", "AZURE_", "header") if name in str(caught.value)] == [named]


def test_an_output_file_replaces_no_pipe_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name, message in (("pipe", "a device or a pipe"), ("to-pipe", "a device or a pipe"), ("circle", "circular")):
        with pytest.raises(MisuseError, match=f"--html .*{name}: .*{message}"):
            writable_path(tmp_path / name, "--html")
    with pytest.raises(MisuseError, match="a device or a pipe"):
        writable_path("/dev/null", "--html")


def test_a_link_is_resolved_to_the_file_that_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "page.html").symlink_to("far/real.html")
    assert writable_path(tmp_path / "page.html", "--html") == (tmp_path / "far" / "real.html").resolve()
    (tmp_path / "lost.html").symlink_to("nowhere/real.html")
    with pytest.raises(MisuseError, match="there is no folder"):
        writable_path(tmp_path / "lost.html", "--html")


@pytest.mark.parametrize("name", ["index.json", "plan.json"])
def test_no_other_file_is_written_into_a_folder_of_shards(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(MisuseError, match="is a data set. Name a path outside it"):
        writable_path(tmp_path / "page.html", "--html")


def test_two_outputs_have_two_paths(tmp_path):
    (tmp_path / "link.csv").symlink_to("rows.csv")
    rows, page = tmp_path / "rows.csv", tmp_path / "page.html"
    assert writable_paths({"--out": rows, "--html": page, "--more": None}) == {"--out": rows, "--html": page}
    for same in (rows, tmp_path / "link.csv", f"{tmp_path}/./rows.csv"):
        with pytest.raises(MisuseError, match="--html .*: is the file of --out too"):
            writable_paths({"--out": rows, "--html": same})
    with pytest.raises(MisuseError, match="is the file of --out too"):
        writable_paths({"--out": "s3://bucket/a", "--html": "s3://bucket/a"})


@pytest.mark.parametrize("path", ["a" * 256, "b/" * 2100, f"file:///{'é' * 128}"])
def test_a_path_that_no_file_system_takes_is_refused(path: str) -> None:
    with pytest.raises(MisuseError, match="is too long for a path"):
        storage_path(path)
