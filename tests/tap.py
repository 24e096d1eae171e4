"""Runs a module's unittest cases and reports them in TAP, so that meson counts cases and not programs."""

import sys
import unittest


class TapResult(unittest.TestResult):
    count = 0

    def report(self, verdict, test, remark=""):
        self.count += 1
        print(f"{verdict} {self.count} - {test.id().replace('__main__.', '')}{remark}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.report("ok", test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.report("not ok", test)
        print(self.failures[-1][1], file=sys.stderr, flush=True)

    def addError(self, test, error):
        super().addError(test, error)
        self.report("not ok", test)
        print(self.errors[-1][1], file=sys.stderr, flush=True)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.report("not ok", subtest)
            trace = (self.failures + self.errors)[-1][1]
            print(trace, file=sys.stderr, flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.report("ok", test, f" # SKIP {reason}")


def main():
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    result = TapResult()
    suite.run(result)
    print(f"1..{result.count}", flush=True)
    sys.exit(0 if result.wasSuccessful() and result.count else 1)
