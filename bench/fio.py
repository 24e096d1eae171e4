"""What the disk can do, by fio: the roofline that the benchmarks compare with."""

import argparse
import json
import os
import re
import subprocess
import sys

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text):
    match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB|)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB or 512MiB")
    return int(match[1]) * UNITS[match[2]]


def run(command, **environment):
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{done.stderr}")
    return done.stdout


def fio(directory, size, direction, block=4 << 20, depth=8, **environment):
    command = ["fio", "--name=roofline", f"--filename={directory}/fio", f"--size={size}", f"--rw={direction}",
               "--ioengine=io_uring", "--direct=1", f"--bs={block}", f"--iodepth={depth}", "--output-format=json"]
    if direction == "write":
        command += ["--fallocate=native", "--end_fsync=1"]
    job = json.loads(run(command, **environment))["jobs"][0]
    seconds = job["job_runtime"] / 1000
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
    return {"bytes": size, "seconds": max(1, job[direction]["runtime"]) / 1000, "cpu": cpu, "extra": None}


def fio_round(directory, size, block=4 << 20, depth=8):
    """A durable write and a cold read, the better of huge and ordinary pages."""
    write = fio(directory, size, "write", block, depth, **HUGE_PAGES)
    reads = [fio(directory, size, "read", block, depth, **pages) for pages in (HUGE_PAGES, {})]
    os.unlink(f"{directory}/fio")
    return write, min(reads, key=lambda read: read["seconds"])
