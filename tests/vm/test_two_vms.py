"""A second VM beside the run's own: it takes minutes more."""

from __future__ import annotations

import pytest

from lima_kernels.lima.limactl import Limactl

from .conftest import Start, run

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


def test_kernels_in_two_vms_at_once(start: Start) -> None:
    one = start()
    try:
        two = start(instance="lk-second")
        nodes = [notebook.run("import platform; print(platform.uname().node)") for notebook in (one, two)]
        assert nodes == ["lima-lk-test", "lima-lk-second"]
        two.client.stop_channels()
        two.manager.shutdown_kernel(now=True)
        assert one.run("print('alive')") == "alive"
    finally:
        run(Limactl().delete("lk-second"))
