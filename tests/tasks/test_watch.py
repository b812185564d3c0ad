"""The server of live pages: reachable from this machine alone, and blind to everything but runs."""

import http.client
import threading

import pytest
from support.runs_written import lines, write_run

from simclr.errors import RunError, SettingError
from simclr.tasks.watch import Watch


@pytest.fixture
def server(tmp_path):
    """A server of one running and one finished run."""
    write_run(tmp_path / "runs" / "a", finished=False, log=lines(50))
    write_run(tmp_path / "runs" / "b")
    (tmp_path / "secret").write_text("secret")
    with Watch(runs=[tmp_path / "runs"], port=0).server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path, **headers):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def test_two_live_runs_are_served_and_nothing_is_written(server, tmp_path):
    before = files(tmp_path)
    response, text = get(server, "/")
    assert response.status == 200
    assert 'href="/run/a"' in text
    assert 'href="/run/b"' in text
    assert get(server, "/run/a")[0].status == get(server, "/run/b?x=1")[0].status == 200
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "path",
    ["/secret", "/../secret", "/run/../../secret", "/run/..%2f..%2fsecret", "/run/%2e%2e/%2e%2e/secret",
     "/run/a/recipe.yaml", "/run/", "/run/%00", "/run/a%2f..%2f..%2fsecret", "HTTP://[/"],
)  # fmt: skip
def test_no_path_reaches_a_file(server, path):
    response, text = get(server, path)
    assert response.status == 404
    assert "secret" not in text.replace(path, "")


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "localhost.attacker.example", "", "[::1"])
def test_a_page_of_another_origin_cannot_name_the_server(server, host):
    assert get(server, "/", Host=host)[0].status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:80"])
def test_addresses_and_localhost_name_it(server, host):
    assert get(server, "/", Host=host)[0].status == 200


def test_a_page_loads_nothing_from_elsewhere(server):
    response, text = get(server, "/")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert f"'nonce-{text.split('nonce=')[1].split(chr(34))[1]}'" in policy
    assert "http" not in text.replace('http-equiv="refresh"', "")
    assert response.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_machines_are_served_only_if_asked_for(host, tmp_path):
    with pytest.raises(SettingError) as refused:
        Watch(runs=[tmp_path], host=host)
    assert refused.value.field == "host"
    assert Watch(runs=[tmp_path], host=host, expose=True).host == host


def test_what_cannot_be_served_is_refused_by_name(server, tmp_path):
    with pytest.raises(SettingError) as refused:
        Watch(runs=[tmp_path], port=server.server_address[1]).server()
    assert refused.value.field == "port"
    with pytest.raises(RunError) as missing:
        Watch(runs=[tmp_path / "none"], port=0).server()
    assert missing.value.path == str(tmp_path / "none")
