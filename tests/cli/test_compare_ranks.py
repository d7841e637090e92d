"""A run of several ranks is shown by one of them, and that is said."""


def test_which_rank_speaks(gpuwatch, recorder):
    for rank in range(2):
        recorder.run("wide", rank=rank, world_size=2)
    recorder.run("narrow")
    told = gpuwatch("compare", "narrow", "wide", "--logdir", recorder.logdir)
    assert told.returncode == 0, told.stderr
    assert "Runs of several ranks are shown by one: wide by rank 0 of 2" in told.stdout
    assert "narrow by" not in told.stdout
    markdown = gpuwatch("compare", "narrow", "wide", "--markdown", "--logdir", recorder.logdir)
    assert all(line.startswith("|") for line in markdown.stdout.splitlines())
    assert "wide by rank 0 of 2" in markdown.stderr
