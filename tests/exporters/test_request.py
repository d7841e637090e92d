import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.exporters.request import HostRule, RefusedRequestError, parse

LOCAL = HostRule([])


def head(*lines):
    return "\r\n".join(lines).encode("latin-1")


def refusal(data, rule=LOCAL):
    with pytest.raises(RefusedRequestError) as caught:
        parse(data, rule)
    return caught.value.status


def test_a_scrape():
    request = parse(head("GET /metrics?x=1&y HTTP/1.1", "Host: 127.0.0.1:9877", "Accept: text/plain", "ACCEPT: */*"), LOCAL)
    assert request == ("GET", "/metrics", "x=1&y", {"host": "127.0.0.1:9877", "accept": "text/plain, */*"})


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET /metrics"], 400),
        (["GET /metrics HTTP/2.0", "Host: localhost"], 400),
        (["GET  /metrics HTTP/1.1", "Host: localhost"], 400),
        (["get /metrics HTTP/1.1", "Host: localhost"], 400),
        (["GET http://localhost/metrics HTTP/1.1", "Host: localhost"], 400),
        (["GET /metrics HTTP/1.1"], 400),
        (["GET /metrics HTTP/1.1", "Host: localhost", "Host: evil.example"], 400),
        (["GET /metrics HTTP/1.1", "Host: localhost", " folded"], 400),
        (["GET /metrics HTTP/1.1", "Host : localhost"], 400),
        (["GET /metrics HTTP/1.1", "Host: evil.example"], 403),
        (["GET /metrics HTTP/1.1", "Host: localhost.evil.example"], 403),
        (["GET /metrics HTTP/1.1", "Host: localhost@evil.example"], 403),
        (["GET /metrics HTTP/1.1", "Host: localhost:80:80"], 403),
        (["GET /metrics HTTP/1.1", "Host: 10.0.0.1"], 403),
        (["GET /metrics HTTP/1.1", "Host: "], 403),
        (["POST /metrics HTTP/1.1", "Host: localhost"], 405),
        (["OPTIONS * HTTP/1.1", "Host: localhost"], 405),
    ],
)
def test_refused(lines, status):
    assert refusal(head(*lines)) == status


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9877", "[::1]:9877", "[::1]"])
def test_loopback_names_are_served(host):
    assert LOCAL(host)


def test_further_names_are_those_of_the_config():
    rule = HostRule(["GPU7.cluster"])
    assert rule("gpu7.cluster:9877")
    assert not rule("gpu8.cluster")


def test_an_address_in_digits_cannot_be_a_rebound_name():
    rule = HostRule([], any_address=True)
    assert rule("10.1.2.3:9877")
    assert rule("[fe80::1]")
    assert not rule("evil.example")
    assert not rule("1.2.3.4.evil.example")


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else(data):
    try:
        parse(data, LOCAL)
    except RefusedRequestError:
        return
    raise AssertionError("300 random bytes were a request")


@given(st.lists(st.text(max_size=40), max_size=5), st.text(max_size=40))
def test_near_misses_are_refused_and_nothing_else(lines, target):
    data = "\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost", *lines]).encode("latin-1", "replace")
    try:
        path = parse(data, LOCAL).path
    except RefusedRequestError:
        return
    assert path.startswith("/")
