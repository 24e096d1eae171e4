"""What a person has to know of the machine to read a benchmark: no names of hosts, disks or users."""

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

from fio import run

ROOT = Path(__file__).resolve().parent.parent
#: The command that is measured.
SAFERING = Path(os.environ.get("SAFERING", ROOT / "build" / "tools" / "safering" / "safering"))


def processor():
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts(directory):
    """name -> value; `directory` is on the disk that is measured."""
    probe = json.loads(run([SAFERING, "probe", directory, "--json"]))
    reactor, disk = probe["reactor"], probe["file_system"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": re.match(r"[\d.]*\d", platform.release())[0],  # what follows may name a provider
        "file system": f"{disk['type']}, O_DIRECT {'granted' if disk['direct'] else 'refused'}",
        "backend": f"{reactor['backend']} ({reactor['reason']})",
        "fio": run(["fio", "--version"]).strip().removeprefix("fio-"),
        **{name: found for name in ("torch", "safetensors") if (found := version(name))},
    }
