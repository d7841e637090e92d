"""Its main thread sleeps once for some seconds: `asleep.py WAY SECONDS`. Says what came of it, then runs on for a second."""

import ctypes
import hashlib
import queue
import select
import subprocess
import sys
import threading
import time


def sleep(seconds):
    began = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - began >= seconds


def join(seconds):
    thread = threading.Thread(target=time.sleep, args=(seconds,))
    thread.start()
    thread.join()
    return not thread.is_alive()


def get(seconds):
    items = queue.Queue()
    threading.Timer(seconds, items.put, ["item"]).start()
    return items.get() == "item"


def get_in_time(seconds):
    try:
        queue.Queue().get(timeout=seconds)
    except queue.Empty:
        return True


def wait(seconds):
    return subprocess.call(["sleep", str(seconds)]) == 0


def poll(seconds):
    return select.select([sys.stdin], [], [], seconds) == ([], [], [])


def read(_):
    return sys.stdin.readline() == "line\n"


def compute(seconds):  # gives the interpreter's lock up and runs
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 6_000_000)
    return True


def contended(seconds):  # another thread keeps the interpreter's lock, which the main thread waits for
    thread = threading.Thread(target=ctypes.PyDLL(None).usleep, args=(int(seconds * 1e6),))
    thread.start()
    thread.join()
    return True


def foreign(seconds):  # sleeps with the interpreter's lock held, in somebody else's code
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return True


print("ready", flush=True)
print(globals()[sys.argv[1]](float(sys.argv[2])), flush=True)
time.sleep(1)
