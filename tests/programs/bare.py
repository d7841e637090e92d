"""Runs programs without hooks, each in a fork of one interpreter that has imported torch: the import takes longer than they do.

Reads one JSON object a line from standard input: {argv, folder, stdin}; answers each with a line when the program has ended.
Its output lies in FOLDER/stdout and FOLDER/stderr, the answer is its exit status.
"""

import json
import os
import runpy
import sys
import traceback

import torch
import torch._dynamo  # the first optimizer imports it, which takes another second


def run(argv, folder, stdin):
    """In the forked child: become the program."""
    os.chdir(folder)
    for name, target in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), target)
    reading, writing = os.pipe()
    os.write(writing, stdin.encode())
    os.close(writing)
    os.dup2(reading, 0)
    sys.stdin = os.fdopen(0)
    sys.argv = argv
    status = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def main():
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            run(**job)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
