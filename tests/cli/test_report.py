"""`gpuwatch report` and `gpuwatch advise` on runs that a real State recorded."""

import json


def test_a_page_for_the_newest_run(gpuwatch, recorder, tmp_path):
    recorder.run("older")
    recorder.run("digits", steps=30)
    written = gpuwatch("report", "--logdir", recorder.logdir)
    assert (written.returncode, written.stdout) == (0, "digits.html\n"), written.stderr
    page = (tmp_path / "digits.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>digits</title>" in page


def test_markdown_with_its_pictures_beside_it(gpuwatch, recorder, tmp_path):
    recorder.run("digits", steps=30)
    written = gpuwatch("report", "digits", "-o", tmp_path / "notes.md", "--logdir", recorder.logdir)
    assert written.returncode == 0, written.stderr
    assert "notes_pictures/loss.svg" in (tmp_path / "notes.md").read_text()
    assert (tmp_path / "notes_pictures" / "loss.svg").exists()


def test_targets_that_cannot_be_written(gpuwatch, recorder, tmp_path):
    recorder.run("digits")
    wrong = gpuwatch("report", "digits", "-o", "page.pdf", "--logdir", recorder.logdir)
    assert wrong.returncode == 2
    assert "neither in .html nor in .md" in wrong.stderr
    missing = gpuwatch("report", "digits", "-o", tmp_path / "no" / "page.html", "--logdir", recorder.logdir)
    assert missing.returncode == 1
    assert "choose another with -o" in missing.stderr
    assert "Traceback" not in wrong.stderr + missing.stderr


def test_advice_names_all_stations_in_order(gpuwatch, recorder):
    recorder.run("digits", steps=30, fields={"forward_seconds": 0.1, "backward_seconds": 0.1, "data_seconds": 0.05})
    shown = gpuwatch("advise", "digits", "--logdir", recorder.logdir)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0] == "digits"
    assert "gain (estimate): at most 1.25x" in shown.stdout
    stations = json.loads(gpuwatch("advise", "digits", "--json", "--logdir", recorder.logdir).stdout)
    names = ["baseline", "mixed precision", "gradient accumulation", "distributed training", "quantisation"]
    assert [station["name"] for station in stations] == names
    assert stations[0]["standing"] == "next"
