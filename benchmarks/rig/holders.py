"""Holders that only watch, for `revocation`, until standard input ends.

Usage: python -m benchmarks.rig.holders ADDRESS TOKEN_FILE COUNT
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from authsvc.client.channel import TokenFile
from authsvc.client.validator import KeyValidator


async def main(address: str, token_file: str, count: int) -> None:
    async with AsyncExitStack() as stack:
        validators = [KeyValidator(address, TokenFile(Path(token_file)), name=f"holder-{n}") for n in range(count)]
        for validator in validators:
            await stack.enter_async_context(validator)
        while not all(validator.has_lease for validator in validators):
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
