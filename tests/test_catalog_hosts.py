"""Catalogs are hostile until shown otherwise: no address leads to this machine's own network, no answer fills it."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from catalog_samples import WORLD, make_item
from fault_server import Answer, Asked, Plan, StacItems, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import api
from pipeline.catalog.faults import FetchFault, FetchPolicy, Permanent, Transient
from pipeline.catalog.hosts import ask, check_host, judging_session
from pipeline.catalog.hrefs import remote_href, shown_href
from pipeline.catalog.scene import Refusal, Scene
from pipeline.catalog.stac import StacApi
from pipeline.errors import ConfigError

QUICK = FetchPolicy(attempts=6, deadline_s=20, backoff_s=0.01, most_backoff_s=0.05, read_s=1.0, low_speed_s=0.3)
DAYS = (date(1980, 1, 1), date(2040, 1, 1))
LOOPBACK = (
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]", "127.0.0.2", "127.255.255.254",
)  # fmt: skip
PRIVATE = (
    "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
    "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "255.255.255.255", "224.0.0.1", "[ff02::1]", "2852039166",
)  # fmt: skip


class Serving:
    """A source that answers by a function of the request, and gives its own address."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer


def get(url: str, allow_hosts: tuple[str, ...] = (), policy: FetchPolicy = QUICK) -> requests.Response:
    with judging_session(allow_hosts) as session:
        return ask(session, requests.Request("GET", url), policy, allow_hosts)


@pytest.mark.parametrize("host", [*LOOPBACK, *PRIVATE])
def test_no_spelling_of_a_private_address_is_let_through(tmp_path: Any, host: str) -> None:
    with serve(tmp_path) as server:
        port = server.server_address[1]
        with pytest.raises(FetchFault, match=r"own network|not known"):
            get(f"http://{host}:{port}/x")
        # nor where nothing looks at the address before the connection is made
        with judging_session(()) as session, pytest.raises(FetchFault, match=r"own network|not known"):
            session.get(f"http://{host}:{port}/x", timeout=2)
        assert server.log == []


@pytest.mark.parametrize("address", ["8.8.8.8", "[2606:4700::1111]", "1.1.1.1"])
def test_public_addresses_pass(address: str) -> None:
    check_host(f"https://{address}/x", ())


def test_a_host_is_allowed_by_the_name_that_is_asked_for(tmp_path: Any) -> None:
    (tmp_path / "x").write_text("hello")
    with serve(tmp_path) as server:
        port = server.server_address[1]
        for allowed, host in (("127.0.0.1", "127.0.0.1"), ("LocalHost", "localhost."), ("[::1]", "[::1]")):
            check_host(f"http://{host}:{port}/x", (allowed,))
        assert get(f"http://127.0.0.1:{port}/x", ("127.0.0.1",)).text == "hello"
        with pytest.raises(Permanent, match="own network"):
            get(f"http://localhost:{port}/x", ("127.0.0.1",))
        with pytest.raises(Permanent, match="own network"):
            get(f"http://127.0.0.2:{port}/x", ("127.0.0.1",))


@pytest.mark.parametrize("public_first", [1, 2])
def test_a_name_that_changes_its_address_meanwhile_leads_nowhere(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, public_first: int
) -> None:
    asked: list[str] = []
    true = socket.getaddrinfo

    def resolve(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host != "rebind.example":
            asked.append(host)
            return true(host, port, *rest, **more)
        asked.append(host)
        # a public address as long as it is judged, then this machine's; nothing listens at the public one
        address = "203.0.114.1" if asked.count(host) <= public_first else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serve(tmp_path) as server:
        policy = replace(QUICK, connect_s=0.5)
        with pytest.raises(Permanent if public_first == 1 else Transient):
            get(f"http://rebind.example:{server.server_address[1]}/x", policy=policy)
        assert server.log == []
    assert asked.count("rebind.example") == 2
    if public_first == 2:
        assert asked[-1] == "203.0.114.1", "the connection goes to the address that was judged"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("http://[::ffff:127.0.0.1]/", "own network"),
        ("http://user:CANARY@127.0.0.1/", "credentials"),
        ("file:///etc/passwd", "no http"),
        ("gopher://127.0.0.1:25/", "no http"),
        ("http://[::1", "no http"),
        ("//2130706433/x", "own network"),
    ],
)
def test_a_redirect_is_judged_like_an_address(location: str, told: str) -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(b"", 302, {"Location": location})

    with serve(Serving(answer)) as server, pytest.raises(Permanent, match=told) as caught:
        get(server.url("x"), ("127.0.0.1",) if "127.0.0.1" not in location else (server.url("")[7:16],))
    assert "CANARY" not in str(caught.value)


class _Endless(BaseHTTPRequestHandler):
    """Redirects with a body that does not end."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/go" else 200)
        self.send_header("Location", "/end")
        self.end_headers()
        try:
            while self.path == "/go":
                self.wfile.write(b"x" * 65536)
                self.server.sent += 65536  # type: ignore[attr-defined]
            self.wfile.write(b"there")
        except OSError:
            pass


@contextmanager
def endless() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        server.daemon_threads, server.sent = True, 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.timeout(60)
def test_the_body_of_a_redirect_is_not_read() -> None:
    with endless() as server:
        answer = get(f"http://127.0.0.1:{server.server_address[1]}/go", ("127.0.0.1",))
        assert answer.content == b"there"
        assert server.sent < 20_000_000  # type: ignore[attr-defined]


_NASTY = st.text(st.sampled_from("/\\.%2e@:#?[]\0\n\t ax1٠。"), max_size=12)


def test_no_hostile_address_reaches_a_server_of_this_machine(tmp_path: Any) -> None:
    with serve(tmp_path) as server:
        port = server.server_address[1]

        @settings(max_examples=500, deadline=None)
        @given(
            scheme=st.sampled_from(["http", "HTTP", "https", "s3", "file", "http:/", ""]),
            before=st.sampled_from(["", "user:pass@", "example.org@", "8.8.8.8#@", "8.8.8.8\\@"]) | _NASTY,
            host=st.sampled_from([*LOOPBACK, "①②⑦.0.0.1", "127。0。0。1", "loCalhost%00.example.org"]),
            after=_NASTY,
        )
        def check(scheme: str, before: str, host: str, after: str) -> None:
            href = f"{scheme}://{before}{host}:{port}/{after}"
            try:
                address = remote_href(href)
                if not address.lower().startswith("s3:"):
                    get(address, policy=replace(QUICK, connect_s=0.2))
            except (ValueError, FetchFault):
                return

        check()
        assert server.log == []


@pytest.mark.parametrize(
    "href",
    [
        "https://user:CANARY@example.org/b.tif", "https://CANARY@example.org/b.tif", "ftp://a:CANARY@b/c",
        "https://?sig=CANARY", "//user:CANARY@b/c", "user:CANARY@b", "https://a/b@c?sig=CANARY#CANARY",
        "https://[::1?sig=CANARY", "s3://NOT_a_bucket/x?X-Amz-Signature=CANARY", "https://a:port/?CANARY",
    ],
)  # fmt: skip
def test_what_is_said_of_an_address_holds_no_secret(href: str) -> None:
    assert "CANARY" not in shown_href(href)
    try:
        assert "CANARY" not in remote_href(href)
    except ValueError as error:
        assert "CANARY" not in str(error)  # noqa: PT017


# ------------------------------------------------------------------------------------------------- the search of an API


def search(url: str, policy: FetchPolicy = QUICK, allow_hosts: tuple[str, ...] = ()) -> list[Scene | Refusal]:
    return list(StacApi(url, (), allow_hosts, policy).search(WORLD, *DAYS))


def api_of(count: int = 2) -> StacItems:
    items = [make_item(f"LC09_L2SP_23106{k}_20230723_02_T1") for k in range(count)]
    for item in items:
        item["properties"]["landsat:wrs_row"] = item["id"][13:16]
        for name, asset in item["assets"].items():
            asset["href"] = f"https://example.org/{item['id']}/{name}.tif?sig=CANARY"
    return StacItems(items)


@pytest.mark.parametrize("fault", ["429", "503", "reset", "hang", "cut", "html", "expired", "drip"])
def test_a_search_survives_every_passing_fault(fault: str) -> None:
    source = api_of()
    with serve(source, Plan(share=1.0, faults=(fault,), most=2, hang_s=2.0)) as server:
        source.url = server.url("stac")
        found = search(source.url)
        assert server.thrown == 2
    assert [item.id for item in found if isinstance(item, Scene)] == sorted(item["id"] for item in source.items)


@pytest.mark.parametrize("fault", ["429", "503", "reset", "hang", "cut", "html", "expired", "drip"])
def test_a_search_that_never_succeeds_ends_with_one_line(fault: str) -> None:
    source = api_of()
    # a busy machine may take a moment over an answer that is there
    policy = replace(QUICK, attempts=3, read_s=0.3 if fault in ("hang", "drip") else 5.0)
    with serve(source, Plan(share=1.0, faults=(fault,), hang_s=1.0)) as server:
        source.url = server.url("stac")
        with pytest.raises(ConfigError, match=r"^imagery\.source: .* cannot be searched as a STAC API: ") as caught:
            search(source.url, policy)
        assert len(server.log) <= 4
    assert "\n" not in str(caught.value)


def test_a_search_goes_on_while_an_api_fails_in_changing_ways() -> None:
    """Tries are not counted as those of a file are: nineteen of twenty answers are wrong, each in one of five ways."""
    source, thrown = api_of(), []
    for seed in range(6):
        with serve(source, Plan(seed=seed, share=0.19, faults=("429", "503", "reset", "html", "expired"))) as server:
            source.url = server.url("stac")
            assert [item.id for item in search(source.url)] == sorted(item["id"] for item in source.items)
            thrown.append(server.thrown)
    assert max(thrown) > 3 * QUICK.attempts


@pytest.mark.parametrize(("fault", "tries"), [("503", QUICK.attempts), ("expired", 4), ("html", 4)])
def test_the_same_fault_in_a_row_is_believed(fault: str, tries: int) -> None:
    source = api_of()
    with serve(source, Plan(share=1.0, faults=(fault,))) as server:
        source.url = server.url("stac")
        with pytest.raises(ConfigError, match=r"cannot be searched"):
            search(source.url)
        assert len(server.log) == tries


def test_the_patience_that_an_api_asks_for_is_kept() -> None:
    source = api_of()
    with serve(source, Plan(share=1.0, faults=("429",), most=1, retry_after="1")) as server:
        source.url = server.url("stac")
        began = time.monotonic()
        search(source.url)
        assert time.monotonic() - began >= 1.0
        server.thrown, server.plan.retry_after = 0, "3600"
        with pytest.raises(ConfigError, match="429"):
            search(source.url)


def test_an_api_leads_to_no_private_host() -> None:
    with serve(api_of()) as canary:
        inner = canary.url("stac").replace("127.0.0.1", "127.0.0.2")

        def landing(asked: Asked) -> Answer:
            return StacItems([], url=inner).answer(replace_path(asked))

        with serve(Serving(landing)) as server, pytest.raises(ConfigError, match="own network"):
            search(server.url("stac"))

        def away(asked: Asked) -> Answer:
            return Answer(b"", 307, {"Location": f"{inner}/search"})

        with serve(Serving(away)) as server, pytest.raises(ConfigError, match="own network"):
            search(server.url("stac"))
        assert canary.log == []


def replace_path(asked: Asked) -> Asked:
    return replace(asked, path="/stac")


def served(body: bytes, headers: dict[str, str] | None = None) -> Callable[[Asked], Answer]:
    """Answer a search with `body`, everything else with a proper landing page."""

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/search"):
            return Answer(body, 200, {"Content-Type": "application/json", **(headers or {})})
        return StacItems([], url="/stac").answer(asked)

    return answer


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        (b"[" * 200_000, {}, "not JSON|nested too deeply"),
        (b'{"features": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}", {}, "nested too deeply"),
        (b'{"numberMatched": ' + b"9" * 10_000 + b"}", {}, "not JSON"),
        (b'{"features": [], "pad": "' + b"x" * 3_000_000 + b'"}', {}, "larger than"),
        (gzip.compress(b'{"features": [], "pad": "' + b"x" * 300_000_000 + b'"}'), {"Content-Encoding": "gzip"},
         "larger than"),
        (b"\xff\xfe\x00", {}, "not JSON"),
    ],
)  # fmt: skip
def test_hostile_json_is_refused(
    monkeypatch: pytest.MonkeyPatch, body: bytes, headers: dict[str, str], told: str
) -> None:
    monkeypatch.setattr(api, "MOST_BYTES", 2_500_000)
    source = Serving(served(body, headers))
    with serve(source) as server, pytest.raises(ConfigError, match=told):
        search_at(server.url("stac"), source)


def search_at(url: str, source: Serving) -> list[Scene | Refusal]:
    inner = source.answer

    def landing(asked: Asked) -> Answer:
        return inner(asked) if asked.path.endswith("/search") else StacItems([], url=url).answer(asked)

    source.answer = landing
    return search(url)


@pytest.mark.parametrize(
    "change",
    [
        '"bbox": [1e308, -1e308, 1e999, 1], "geometry": null', '"bbox": [NaN, 0, 1, 1], "geometry": null',
        '"geometry": {"type": "Point", "coordinates": [1e400, 0]}, "bbox": [0, -Infinity, 1, 1]',
        '"properties": {"datetime": "' + "9" * 5000 + '"}', '"assets": {"red": {"href": "' + "x" * 10**6 + '"}}',
        '"id": "' + "x" * 10**6 + '"', '"properties": {"eo:cloud_cover": ' + "9" * 4000 + "}",
    ],
)  # fmt: skip
def test_absurd_values_make_a_refusal(change: str) -> None:
    # of a key that stands twice the last one counts
    item = json.dumps(make_item())[:-1] + f", {change}}}"
    source = Serving(lambda asked: Answer(f'{{"type": "FeatureCollection", "features": [{item}]}}'.encode()))
    with serve(source) as server:
        (found,) = search_at(server.url("stac"), source)
    assert isinstance(found, Refusal)
    assert len(found.reason) < 1000
    assert len(found.scene_id) < 1000


def test_pages_without_end_are_noticed() -> None:
    count = 0

    def answer(asked: Asked) -> Answer:
        nonlocal count
        count += 1
        link = {"rel": "next", "href": f"search?token={count}"}
        return Answer(json.dumps({"features": [], "links": [link]}).encode())

    source = Serving(answer)
    with serve(source) as server, pytest.raises(ConfigError, match="empty pages"):
        search_at(server.url("stac"), source)
    assert count < 100


@pytest.mark.timeout(60)
def test_a_search_is_over_at_its_deadline() -> None:
    count = 0

    def answer(asked: Asked) -> Answer:
        nonlocal count
        count += 1
        time.sleep(0.05)
        # one new item a page, for ever
        item = make_item(f"LC09_L2SP_231062_20230723_02_T1_{count}")
        link = {"rel": "next", "href": f"search?token={count}"}
        return Answer(json.dumps({"features": [item], "links": [link]}).encode())

    source = Serving(answer)
    inner = source.answer
    with serve(source) as server:
        url = server.url("stac")
        source.answer = lambda asked: (
            inner(asked) if asked.path.endswith("/search") else StacItems([], url=url).answer(asked)
        )
        began = time.monotonic()
        with pytest.raises(ConfigError, match="not done after 2 s"):
            search(url, replace(QUICK, deadline_s=2.0))
        assert time.monotonic() - began < 10
