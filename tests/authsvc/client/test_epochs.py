"""Answers say which epoch their revision is of, since a replica may answer from memory of an epoch that is over."""

import pytest

from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyValidator
from authsvc.runtime.environment import Address
from tests.authsvc.client.fake_key_service import FakeKeyService
from tests.clocks import Clock
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")


@pytest.mark.parametrize(("epoch", "is_kept"), [("epoch-1", True), ("epoch-0", False)])
async def test_an_answer_of_another_epoch_is_not_kept_whatever_its_revision(
    service: FakeKeyService, address: Address, clock: Clock, epoch: str, is_kept: bool
) -> None:
    """Rule 4. It decides the request that asked."""
    service.answer.epoch = epoch
    service.answer.revision = 1000
    async with KeyValidator(address, service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        decision = await validator.validate(KEY)
        assert decision.project_id == "demo"
        assert validator.cached(KEY) == (decision if is_kept else None)
