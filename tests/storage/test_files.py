"""Files of the store that are no parts: pages and checkpoints."""

import os

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Store, StoreError, examine
from tests.support.outage import Outage

PAGE = "reports/a/report.html"
NAMES = (PAGE, "reports/a/locality.md", "checkpoints/one.pt")
WHAT = ("put", "write", "break off", "remove")
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.sampled_from(NAMES), st.binary()))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_file_is_what_was_put_last_whole_or_not_there(store: Store, steps: list[tuple[str, str, bytes]]) -> None:
    wanted: dict[str, bytes] = {}
    store.home.remove(NAMES)
    for what, name, data in steps:
        if what == "put":
            store.put_file(name, data)
            wanted[name] = data
        elif what == "write":
            with store.writing(name) as path:
                path.write_bytes(data)
            wanted[name] = data
        elif what == "break off":
            with pytest.raises(KeyboardInterrupt), store.writing(name) as path:
                path.write_bytes(data)
                raise KeyboardInterrupt
        else:
            store.remove_file(name)
            wanted.pop(name, None)
        for each in NAMES:
            assert store.has_file(each) == (each in wanted)
    for name, data in wanted.items():
        assert store.read_file(name) == data
        with store.reading(name) as path:
            assert path.read_bytes() == data
    copied = store.copied("reports/a")
    found = {f"reports/a/{path.name}": path.read_bytes() for path in copied.glob("*")}
    assert found == {name: data for name, data in wanted.items() if name.startswith("reports/")}
    assert not store.parts("metrics") and list(store.home.litter()) == []


def test_a_large_file_comes_back_whole(store: Store) -> None:
    data = os.urandom(12 << 20)  # more than S3 takes in one request
    with store.writing("checkpoints/one.pt") as path:
        path.write_bytes(data)
    with store.reading("checkpoints/one.pt") as path:
        assert path.read_bytes() == data


def test_an_outage_while_it_is_uploaded_leaves_what_was_there(s3: Store, outage: Outage) -> None:
    s3.put_file("checkpoints/one.pt", b"before")
    for requests in range(4):
        refused = pytest.raises(StoreError, match=r"cannot write checkpoints/one\.pt")
        with refused, s3.writing("checkpoints/one.pt") as path:
            path.write_bytes(os.urandom(24 << 20))
            outage.left = requests
        outage.left = None
        assert s3.read_file("checkpoints/one.pt") == b"before"


def test_a_place_is_what_a_person_opens(local: Store, s3: Store) -> None:
    local.put_file(PAGE, b"page")
    with open(local.place(PAGE), "rb") as file:
        assert file.read() == b"page"
    assert local.copied("reports/a") / "report.html" == type(local.copied("reports/a"))(local.place(PAGE))
    assert s3.place(PAGE) == f"{s3.url}/{PAGE}"


def test_what_is_missing_is_told_in_a_line(store: Store) -> None:
    for read in (store.read_file, lambda name: store.reading(name).__enter__()):
        with pytest.raises(StoreError, match=r"cannot read reports/a/report\.html: ") as refused:
            read(PAGE)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["store.json", "metrics/x", "reports", "reports/", "reports/../store.json"])
def test_no_other_file_is_touched(store: Store, address: str) -> None:
    before = store.home.read("store.json")
    with pytest.raises(StoreError, match="is no file of reports or checkpoints"):
        store.put_file(address, b"")
    assert store.home.read("store.json") == before


def test_a_name_that_leads_elsewhere_is_not_downloaded(s3: Store) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3.url.split("/")[2], Key="some/prefix/reports/a/x/../../../../page", Body=b"evil")
    with pytest.raises(StoreError, match="would lie elsewhere on a disk"):
        s3.copied("reports/a")


def test_pages_are_no_damage_and_checkpoints_are_named(store: Store) -> None:
    store.put_file(PAGE, b"page")
    assert (examine(store).notes, examine(store).damages) == ([], [])
    store.put_file("checkpoints/one.pt", bytes(2_000_000))
    (note,) = examine(store).notes
    assert note == "1 trainings are not done; their checkpoints take 2 MB, and may be removed"
