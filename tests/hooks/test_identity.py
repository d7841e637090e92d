"""Who a process says it is: ranks, names, and nothing that may be a secret."""

import json
import os
import subprocess
import sys

import pytest
from gpuwatch_hooks import identity

TELLS = """
import json
from gpuwatch_hooks import identity
print(json.dumps([identity.program(), identity.run_name(), identity.job_token(), identity.ranks()]))
"""


def _told(*arguments, **environment):
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_a_script_its_arguments_and_its_folder(tmp_path):
    folder = tmp_path / "s3cret-folder"
    folder.mkdir()
    script = folder / "train_resnet.v2.py"
    script.write_text(TELLS)
    told = _told(script, "--api-key", "s3cret")
    assert told[0] == "train_resnet.v2"
    assert told[1].startswith("train_resnet.v2-20")
    assert "s3cret" not in json.dumps(told)


def test_a_module_a_package_and_a_line_of_code(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "__main__.py").write_text(TELLS)
    (tmp_path / "pack" / "train.py").write_text(TELLS)
    assert _told("-m", "pack.train", PYTHONPATH=str(tmp_path))[0] == "pack.train"
    assert _told("-m", "pack", PYTHONPATH=str(tmp_path))[0] == "pack"
    assert _told("-c", TELLS, "s3cret")[0] in ("-c", "python")


def test_ranks_of_one_launcher_share_a_token_and_a_name(tmp_path):
    """As under torchrun with only GPUWATCH=1 set: nothing else joins them."""
    launcher = (
        "import os, subprocess, sys, time\n"
        "os.environ['WORLD_SIZE'] = '2'\n"
        "for rank in range(2):\n"
        "    time.sleep(1.1 * rank)\n"
        "    os.environ['RANK'] = str(rank)\n"
        f"    subprocess.run([sys.executable, '-c', {TELLS!r}], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, timeout=60, check=True)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first[1:3] == second[1:3]
    assert (first[3], second[3]) == ([0, 2], [1, 2])
    again = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(again.stdout.splitlines()[0])[2] != first[2]


def test_single_processes_do_not_share_a_token():
    assert _told("-c", TELLS)[2] != _told("-c", TELLS)[2]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"RANK": "3"}, (3, 4)),
        ({"RANK": "x", "WORLD_SIZE": ""}, (0, 1)),
        ({"RANK": "-1", "WORLD_SIZE": "-7"}, (0, 1)),
    ],
)
def test_ranks_from_the_environment(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert identity.ranks() == expected


def test_ranks_of_a_process_group_made_without_the_environment(tmp_path):
    code = (
        "import sys, torch.distributed as d\n"
        f"d.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=0, world_size=1)\n"
        "from gpuwatch_hooks import identity\n"
        "import os; os.environ.update(RANK='5', WORLD_SIZE='9')\n"
        "print(identity.ranks())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "(0, 1)\n"
