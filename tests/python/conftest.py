def pytest_configure(config):
    for warning in (
        "ignore:torch.distributed is disabled, unavailable or uninitialized",
        "ignore:torch.distributed is unavailable or uninitialized",
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", warning)
