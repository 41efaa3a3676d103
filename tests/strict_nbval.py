"""Make nbval compare pictures too: a plugin, loaded with ``-p tests.strict_nbval``."""

from nbval.plugin import IPyNbFile


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.skip_compare = tuple(
            kind for kind in collector.skip_compare if kind not in ("image/png", "image/jpeg")
        )
