"""How the key service's processes share a core."""

import os

import pytest

from authsvc.runtime.process import use_batch_scheduling


def test_a_system_that_does_not_allow_it_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    use_batch_scheduling()
    monkeypatch.delattr(os, "SCHED_BATCH")
    use_batch_scheduling()
