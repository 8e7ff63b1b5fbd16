import pytest

from restomod.errors import UserError
from restomod.prepare.config import Preparation
from restomod.prepare.job import open_job


def test_a_work_dir_that_is_a_file_or_holds_something_else_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").touch()
    for name, why in (("file", "cannot be written: File exists"), ("taken", "holds no job")):
        recipe = Preparation(work_dir=str(tmp_path / name))
        with pytest.raises(UserError, match=why), open_job(recipe, {}, refresh=False):
            pass
