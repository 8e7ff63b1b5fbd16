"""What the manifest and the messages count."""

from restomod.prepare.manifest import Results, bad_input, mostly_dropped


def test_records_that_hold_nothing_are_no_bad_input():
    dropped = [{"broken_json": 2, "empty_line": 5}, {"undecodable": 1, "broken_json": 1}, {}]
    read = [{"steps": {"read": {"documents_in": 10, "dropped": of_unit}}} for of_unit in dropped]
    records, bad, empty = bad_input(Results([], read))
    assert records == 30
    assert bad == {"broken_json": 3, "undecodable": 1}
    assert empty == {"empty_line": 5}


def test_a_source_that_loses_more_than_half_is_noted_with_the_commonest_reason():
    read = {"documents_in": 1000, "documents_out": 1000, "dropped": {}}
    quality = {"documents_in": 1000, "documents_out": 499, "dropped": {"few": 400, "long": 101}}
    note = mostly_dropped({"name": "web", "stages": [read, quality]})
    assert note == "web: 501 of 1,000 documents were dropped, 400 of them as few."
    assert mostly_dropped({"name": "web", "stages": [read, quality | {"documents_out": 500}]}) == ""
