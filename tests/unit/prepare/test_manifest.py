"""What the manifest and the messages count."""

from restomod.prepare.manifest import Results, bad_input


def test_records_that_hold_nothing_are_no_bad_input():
    dropped = [{"broken_json": 2, "empty_line": 5}, {"undecodable": 1, "broken_json": 1}, {}]
    read = [{"steps": {"read": {"documents_in": 10, "dropped": of_unit}}} for of_unit in dropped]
    records, bad, empty = bad_input(Results([], read))
    assert records == 30
    assert bad == {"broken_json": 3, "undecodable": 1}
    assert empty == {"empty_line": 5}
