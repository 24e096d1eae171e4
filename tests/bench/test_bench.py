"""bench/sweep and bench/picture.py: their arguments, and that they end and write files. Never what a disk can do.

usage: test_bench.py SAFERING
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]
sys.dont_write_bytecode = True

import picture
import tap

SAFERING = os.path.abspath(sys.argv.pop(1))
SVG = "{http://www.w3.org/2000/svg}"


def point(x, median):
    return {"x": x, "median": median, "low": median / 2, "high": median * 1.25}


REPORT = {
    "title": "A <title> & more",
    "subtitle": "what was measured, in words that go on " * 8,
    "facts": {"kernel": "6.1", "file system": "ext4"},
    "skipped": [{"name": "a peer", "reason": "not installed"}],
    "charts": [
        {"kind": "lines", "title": "save: block size", "x": "size of a block", "unit": "bytes", "series": [
            {"name": "fio: the roofline", "roofline": True, "points": [point(65536, 1.5), point(4 << 20, 3.0)]},
            {"name": "safering, io_uring", "roofline": False, "points": [point(65536, 1.0), point(4 << 20, 2.9)]},
            *({"name": f"a side with a long name {i}", "roofline": False, "points": [point(4 << 20, 1.0)]} for i in range(4)),
        ]},
        {"kind": "bars", "title": "save, durable", "roofline": 3.25, "rows": [
            {"name": "safering", "ours": True, "median": 3.0, "low": 2.5, "high": 3.5, "note": "3.00 (0.92 x fio)"},
            {"name": "another", "ours": False, "median": 0.25, "low": 0.2, "high": 0.3, "note": "0.25 (0.08 x fio)"},
        ]},
    ],
}


class Picture(unittest.TestCase):
    def texts(self, svg):
        return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]

    def test_says_what_a_reader_needs(self):
        words = self.texts(picture.draw(REPORT))
        for expected in ["A <title> & more", "kernel 6.1 · file system ext4", "Not run: a peer: not installed", "GiB/s",
                         "save: block size", "size of a block", "64 KiB", "4 MiB", "fio: the roofline", "safering, io_uring",
                         "roofline: fio 3.25 GiB/s", "another", "0.25 (0.08 x fio)"]:
            self.assertIn(expected, words)

    def test_lies_within_its_frame(self):
        document = ElementTree.fromstring(picture.draw(REPORT))
        _, _, width, height = map(float, document.get("viewBox").split())
        for node in document.iter():
            for names, limit in ((("x", "x1", "x2", "cx"), width), (("y", "y1", "y2", "cy"), height)):
                for name in names:
                    self.assertTrue(0 <= float(node.get(name, 0)) <= limit, ElementTree.tostring(node))

    def test_legends_and_charts_do_not_overlap(self):
        nodes = list(ElementTree.fromstring(picture.draw(REPORT)).iter(f"{SVG}text"))
        places = [(node.get("x"), node.get("y")) for node in nodes]
        self.assertEqual(len(places), len(set(places)))
        legends = [node for node in nodes if "long name" in "".join(node.itertext())]
        self.assertTrue(all(float(node.get("x")) < picture.WIDTH / 2 for node in legends))

    def test_a_higher_rate_is_higher(self):
        document = ElementTree.fromstring(picture.draw(REPORT))
        path = next(node.get("d") for node in document.iter(f"{SVG}path") if node.get("stroke") == picture.ROOFLINE)
        _, low, _, high = [float(part.lstrip("ML")) for part in path.split()]
        self.assertGreater(low, high)
        bars = [float(node.get("width")) for node in document.iter(f"{SVG}rect") if node.get("height") == "20"]
        self.assertAlmostEqual(bars[0] / bars[1], 12, 1)

    def test_needs_nothing_from_elsewhere(self):
        svg = picture.draw(REPORT)
        self.assertEqual([word for word in ("href", "url(", "<script", "<image") if word in svg], [])

    def test_ticks(self):
        for top in [0.003, 0.9, 1.0, 3.51, 7, 99.9, 4000]:
            ticks = picture.nice_ticks(top)
            self.assertTrue(ticks[0] == 0 and ticks[-2] < top <= ticks[-1] * (1 + 1e-9), (top, ticks))
            self.assertTrue(3 <= len(ticks) <= 8, (top, ticks))


class Scripts(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=os.getcwd()))
        self.addCleanup(shutil.rmtree, self.directory)
        (self.directory / "bin").mkdir()
        shutil.copy(ROOT / "tests" / "bench" / "fake_fio.py", self.directory / "bin" / "fio")
        (self.directory / "disk").mkdir()

    def run_script(self, name, *arguments, fio=True, command=SAFERING):
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}" if fio else str(self.directory)
        environment = os.environ | {"PATH": path, "SAFERING": str(command), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, str(ROOT / "bench" / name), *map(str, arguments)], env=environment,
                              cwd=self.directory, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL)

    def test_wrong_use_is_2(self):
        for name, *arguments in [
            ["sweep"], ["sweep", "disk", "--size", "big"], ["sweep", "disk", "--rounds", "0"], ["sweep", "absent"],
            ["sweep", "disk", "--size", "4KiB"], ["race"], ["race", "disk", "--rounds", "-1"], ["race", "absent"],
            ["race", "disk", "--peer", "frobnicate"], ["picture.py"], ["picture.py", "a"],
        ]:
            with self.subTest(name=name, arguments=arguments):
                result = self.run_script(name, *arguments)
                self.assertEqual(result.returncode, 2, result)
                self.assertNotIn("Traceback", result.stderr)

    def test_what_is_missing_is_named(self):
        self.assertIn("tools/setup bench", self.run_script("sweep", "disk", fio=False).stderr)
        self.assertIn("tools/test", self.run_script("sweep", "disk", command=self.directory / "absent").stderr)
        self.assertIn("--size", self.run_script("sweep", "disk", "--size", "1000000GiB").stderr)

    def test_a_quick_sweep(self):
        result = self.run_script("sweep", "disk", "--quick", "--size", "2MiB", "--out", "out")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads((self.directory / "out.json").read_text())
        self.assertEqual([chart["title"] for chart in report["charts"]],
                         [f"{verb}: {axis}" for axis in ("the model's size", "block size", "depth", "ranks and sharding")
                          for verb in ("save, durable", "load, cold")])
        for chart in report["charts"]:
            self.assertTrue(any(one["roofline"] for one in chart["series"]))
            for one in chart["series"]:
                self.assertEqual(len(one["points"]), 2, chart)
                self.assertTrue(all(point["median"] > 0 for point in one["points"]), chart)
        self.assertEqual((self.directory / "out.svg").read_text(), picture.draw(report))
        self.assertNotIn(os.uname().nodename, json.dumps(report["facts"]).split())
        self.assertEqual(list((self.directory / "disk").iterdir()), [])


if __name__ == "__main__":
    tap.main()
