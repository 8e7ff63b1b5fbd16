import pytest

from restomod.launch.node import Node, _left_codes
from restomod.train.faults.stopping import REQUEUE, leave_requeue


def test_codes_of_this_start_are_read_as_far_as_they_are_whole(tmp_path):
    codes = {"old": "2\n", "new": "0\n", "new/late": "75\n", "new/full_disk": "", "new/cut": "7"}
    for place, text in codes.items():
        folder = tmp_path / place / "attempt_0" / "0"
        folder.mkdir(parents=True)
        (folder / "exit_code").write_text(text)
    assert _left_codes(tmp_path, {tmp_path / "old"}) == {0, 75}


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 75), ("STOP file", 130), ("", 75)])
def test_a_run_that_saved_goes_on_unless_a_person_stopped_it(tmp_path, reason, code):
    node = Node.__new__(Node)
    node._folder = tmp_path
    leave_requeue(tmp_path, reason, 5)
    if not reason:
        (tmp_path / REQUEUE).write_text("")  # cannot be read
    assert node._verdict(1, None, set()) == code
    assert node._verdict(0, None, {2}) == 2
