"""The script says what is in files of documents."""

import json

import readers


def test_the_script_prints_its_tally_and_exits_with_2_on_nothing(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n{"text": ""}\n')
    assert readers.main([str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {"empty_document": 1}
    assert readers.main([str(file), "--text-field", "body"]) == 2
    assert "error: " in capsys.readouterr().err
