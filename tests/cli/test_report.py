"""`gpuwatch report` and `gpuwatch advise` on runs that a real State recorded."""

import json
import math

from gpuwatch_hooks import wire

from gpuwatch.state.records import Meta
from tests.exporters.job import PROBED
from tests.state.recorded import slots, step_payload


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


def both(gpuwatch, recorder, tmp_path, *run):
    """The page of a run as (HTML, Markdown, stderr), which must both be there, without a traceback."""
    pages, told = [], ""
    for suffix in ("html", "md"):
        written = gpuwatch("report", *run, "-o", tmp_path / f"page.{suffix}", "--logdir", recorder.logdir)
        assert written.returncode == 0, written.stderr
        assert "Traceback" not in written.stderr
        pages.append((tmp_path / f"page.{suffix}").read_text())
        told += written.stderr
    assert "nan" not in pages[0].partition("<style>")[0].lower()
    return *pages, told


def test_a_run_that_has_not_stepped_yet(gpuwatch, recorder, tmp_path):
    recorder.run("waiting", steps=0, ending=None)
    page, notes, _ = both(gpuwatch, recorder, tmp_path, "waiting")
    assert "<b>0</b><span>steps</span>" in page
    assert "live, started" in page
    assert "None: no rule saw anything wrong." in notes
    advice = gpuwatch("advise", "waiting", "--logdir", recorder.logdir)
    assert (advice.returncode, "? baseline" in advice.stdout) == (0, True), advice.stderr


def test_a_run_that_goes_on(gpuwatch, recorder, tmp_path):
    recorder.run("going", steps=20, ending=None)
    page, _, _ = both(gpuwatch, recorder, tmp_path, "going")
    assert "<p>live, started" in page
    assert "<b>20</b><span>steps</span>" in page


def test_a_run_in_which_nothing_was_a_number(gpuwatch, recorder, tmp_path):
    names = (
        "loss",
        "grad_norm",
        "weight_norm",
        "update_ratio",
        "forward_seconds",
        "step_seconds",
        "loss_scale",
        "overhead_ratio",
    )
    recorder.run("wild", steps=30, fields=dict.fromkeys(names, math.nan))
    page, notes, _ = both(gpuwatch, recorder, tmp_path, "wild")
    assert "<b>30</b><span>steps</span>" in page
    assert "Median step" not in notes
    advice = gpuwatch("advise", "wild", "--logdir", recorder.logdir)
    assert (advice.returncode, "nan" in advice.stdout) == (0, False), advice.stdout + advice.stderr


def test_eight_ranks_of_which_one_lags(gpuwatch, recorder, tmp_path):
    for rank in range(8):
        pace = {"step_seconds": 0.5 if rank == 3 else 0.25}
        recorder.run("eight", steps=20, rank=rank, world_size=8, fields=pace)
    page, notes, _ = both(gpuwatch, recorder, tmp_path, "eight")
    assert page.count("<td>finished</td>") == 8
    assert "| 7 | finished | 20 | 0.05 | 0.25 |" in notes
    advice = gpuwatch("advise", "eight", "--logdir", recorder.logdir).stdout
    assert "The slowest rank, 3, takes 2.00 times the median step." in " ".join(advice.split())


def test_a_journal_with_a_hole_and_one_that_is_gone(gpuwatch, recorder, tmp_path):
    recorder.run("holed", steps=200)
    (segment,) = (recorder.logdir / "holed" / "journal").glob("*.journal")
    data = bytearray(segment.read_bytes())
    middle = len(data.rstrip(b"\0")) // 2
    data[middle : middle + 300] = b"x" * 300
    segment.write_bytes(data)
    page, notes, told = both(gpuwatch, recorder, tmp_path, "holed")
    assert "damaged bytes of the journal were passed over" in told
    assert "damaged bytes of the journal were passed over" in page
    assert "damaged bytes of the journal were passed over" in notes
    segment.unlink()
    segment.parent.rmdir()
    for command in ("report", "advise"):
        gone = gpuwatch(command, "holed", "--logdir", recorder.logdir)
        assert gone.returncode == 1
        assert "the journal of holed in" in gone.stderr
        assert "Traceback" not in gone.stderr


def test_a_loss_scale_with_its_skipped_steps_and_an_amp_probe(gpuwatch, recorder, tmp_path):
    run = recorder.run("scaled", steps=1, ending=None)
    fields = {"loss": 1.0, "step_seconds": 0.25, "autocast_dtype": 1.0}
    payloads = []
    for step in range(2, 42):
        skips = step in (10, 20)
        scale = 65536.0 / 2 ** (step // 10)
        values = {**fields, "loss_scale": scale, "skipped": float(skips), "loss_scale_backoffs": float(skips)}
        payloads.append((wire.KIND_STEP, step_payload(step, values)))
    recorder.state.ring(run, slots(payloads, first=2))
    recorder.state.control(run, 1, Meta(PROBED))
    recorder.state.save(run)
    page, notes, _ = both(gpuwatch, recorder, tmp_path, "scaled")
    assert "| 65,536 | 4,096 | 65,536 | 4,096 | 2 | 2 |" in notes
    assert "Skipped at step 10, 20:" in notes
    assert page.count("update skipped (step") == 2
    assert "| bfloat16 | 12 | 1.50x (1.40 to 1.60) | 2,861 MiB | 25.0% |" in notes
    assert "<td>float32</td><td class=n>8</td><td class=n>1.00x</td><td class=n>3,815 MiB</td>" in page
    assert ">16384</text>" in page, "the scale's axis is one of powers of two"
