"""Prints `N passed, N failed[, N skipped]` over test reports and exits with 1 if anything failed.

usage: count_tests.py STATUS REPORT...
  STATUS  the test runners' own verdict, 0 or 1
  REPORT  a meson-logs directory, or a JUnit file of another runner

meson's testlog.json is the truth about programs, its JUnit file about the cases of GoogleTest programs. A
program that failed while all its cases passed (a crash after the last one, a leak found at exit) is one
more failure: nothing that failed may end in `0 failed`.
"""

import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

PASSED, FAILED, SKIPPED = 0, 1, 2
PROGRAM_RESULTS = {"OK": PASSED, "EXPECTEDFAIL": PASSED, "SKIP": SKIPPED}


def result_of(case):
    if case.find("failure") is not None or case.find("error") is not None:
        return FAILED
    skipped = case.find("skipped")
    # What is expected to fail, as torch's own class is in tests/python, did what it should.
    if skipped is not None and skipped.get("type") == "pytest.xfail":
        return PASSED
    if skipped is not None or case.get("status") == "notrun":
        return SKIPPED
    return PASSED


def results_of_junit(path):
    """(suite name, result) of every case."""
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for case in suite.findall("testcase"):
            yield suite.get("name", ""), result_of(case)


def results_of_meson(logs):
    cases = list(results_of_junit(logs / "testlog.junit.xml"))
    for line in (logs / "testlog.json").read_text().splitlines():
        program = json.loads(line)
        name = program["name"].split(" / ")[-1]
        verdict = PROGRAM_RESULTS.get(program["result"], FAILED)
        # GoogleTest's suites are named project.program.suite; other programs have no suite of their own.
        own = [result for suite, result in cases if suite.split(".")[1:2] == [name]]
        yield from own or [verdict]
        if own and verdict == FAILED and FAILED not in own:
            print(f"{name}: failed outside its cases", file=sys.stderr)
            yield FAILED


def main(status, reports):
    totals = [0, 0, 0]
    for report in map(pathlib.Path, reports):
        try:
            if report.is_dir():
                results = list(results_of_meson(report))
            else:
                results = [result for _, result in results_of_junit(report)]
        # A runner that was killed leaves no report, half of one, or lines without what they should say.
        except (OSError, ElementTree.ParseError, ValueError, KeyError) as error:
            print(f"the tests did not run to their end: {type(error).__name__}: {error}", file=sys.stderr)
            results = [FAILED]
        for result in results:
            totals[result] += 1
    if status != "0" and totals[FAILED] == 0:
        totals[FAILED] = 1
    passed, failed, skipped = totals
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
