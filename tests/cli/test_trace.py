"""SAFERING_TRACE: a file that a JSON reader takes, and in it what saves and loads did."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import unittest
import unittest.mock
import xml.etree.ElementTree

from command import COMMAND, CommandTest

import tap


class TraceTest(CommandTest):
    def traced_bench(self, *options):
        path = self.directory / "trace.json"
        with unittest.mock.patch.dict(os.environ, SAFERING_TRACE=str(path)):
            self.good("bench", self.directory, "--size", "32MiB", "--repeat", "1", *options)
        return json.loads(path.read_text())

    def test_two_ranks(self):
        events = self.traced_bench("--ranks", "2", "--shard-dim", "1")
        names = collections.Counter(event["name"] for event in events if event["ph"] in "bX")
        for name in ("write", "read", "fsync", "rename", "sync directory", "copy in", "copy out", "read_metadata",
                     "prepare_global_plan", "finish: the metadata commit", "write_data of rank 0",
                     "write_data of rank 1", "read_data"):
            self.assertGreater(names[name], 0, name)
        # Each beginning has its end, after it, and all bytes went somewhere.
        begun = {(event["pid"], event["id"]): event for event in events if event["ph"] == "b"}
        ended = {(event["pid"], event["id"]): event for event in events if event["ph"] == "e"}
        self.assertEqual(begun.keys(), ended.keys())
        self.assertTrue(all(begun[key]["ts"] <= ended[key]["ts"] for key in begun))
        writes = [event["args"] for event in begun.values() if event["name"] == "write"]
        self.assertGreaterEqual(sum(write["bytes"] for write in writes), 32 << 20)
        self.assertTrue(any(write["file"].endswith(".safetensors") for write in writes), writes)

    def test_a_second_run_adds_to_it(self):
        first = self.traced_bench()
        both = self.traced_bench()
        self.assertEqual(both[: len(first)], first)
        self.assertGreater(len(both), len(first))

    def test_a_run_that_was_cut_off_leaves_a_file_that_the_next_one_closes(self):
        first = self.traced_bench()
        path = self.directory / "trace.json"
        path.write_text(path.read_text().removesuffix("\n]\n"))  # a process that is killed closes nothing
        self.assertEqual(json.loads(path.read_text() + "]"), first)
        self.assertEqual(self.traced_bench()[: len(first)], first)

    def test_processes_at_once_share_a_file(self):
        source, path = self.file("source.safetensors"), self.directory / "trace.json"
        command = [COMMAND, "verify", source]
        environment = os.environ | {"SAFERING_TRACE": str(path)}
        for _ in range(5):
            running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
            self.assertEqual([process.wait() for process in running], [0] * 4)
            events = json.loads(path.read_text())
        self.assertEqual(sum(event["name"] == "process_name" for event in events), 20)

    def test_a_trace_becomes_a_picture(self):
        self.traced_bench("--ranks", "2")
        timeline = pathlib.Path(__file__).parents[2] / "bench" / "timeline.py"
        trace, picture = self.directory / "trace.json", self.directory / "out.svg"
        subprocess.run([sys.executable, timeline, trace, picture], check=True)
        drawn = xml.etree.ElementTree.parse(picture).getroot()
        texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
        self.assertRegex(texts[0], "^A save of [0-9]+ MiB by 2 ranks$")
        for words in ("rank 0, 1", "prepare_global_plan", "write_data of rank 0", "write_data of rank 1", "finish", "copies", "disk", "durable"):
            self.assertIn(words, texts)
        titles = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
        self.assertGreaterEqual(sum(title.startswith("write: ") and title.endswith("MiB") for title in titles), 6)
        trace.write_text('[{"ph":"M","pid":1,"tid":0,"name":"process_name","args":{}},\n')
        run = subprocess.run([sys.executable, timeline, trace, picture], capture_output=True, text=True)
        self.assertEqual((run.returncode, len(run.stderr.splitlines())), (1, 1), run.stderr)

    def test_what_cannot_be_written_is_said(self):
        source = self.file("source.safetensors")
        with unittest.mock.patch.dict(os.environ, SAFERING_TRACE=str(self.directory / "nowhere" / "trace.json")):
            notes = self.good_json("convert", source, self.directory / "saved")["notes"]
        self.assertTrue(any("SAFERING_TRACE" in note and "nowhere" in note for note in notes), notes)


if __name__ == "__main__":
    tap.main()
