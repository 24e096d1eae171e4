import os

# What somebody measured of this machine's file systems must not change a test, nor the processes that tests start.
os.environ["SAFERING_TUNING"] = "off"


def pytest_configure(config):
    for warning in (
        "ignore:torch.distributed is disabled, unavailable or uninitialized",
        "ignore:torch.distributed is unavailable or uninitialized",
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", warning)
