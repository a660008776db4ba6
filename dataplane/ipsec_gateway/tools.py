"""Running ``ip`` and ``nft``: short-lived, crash-isolated, with errors that say what was tried."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import Any

#: Seconds that one command may take.
TIMEOUT = 30.0


class ToolError(Exception):
    """A command failed or is missing. The message has the command and what it said."""


async def run(*command: str, script: str = "", check: bool = True) -> str:
    """Run a command with ``script`` on its standard input and return its standard output.

    Without ``check`` the exit code does not matter: part of a batch may have failed.
    """
    path = shutil.which(command[0])
    if path is None:
        package = {"ip": "iproute2", "nft": "nftables"}.get(command[0], command[0])
        raise ToolError(f"{command[0]} is not installed; install the package {package}")
    process = await asyncio.create_subprocess_exec(
        path,
        *command[1:],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(script.encode()), TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ToolError(f"{' '.join(command)}: no answer after {TIMEOUT:.0f} s") from None
    if check and process.returncode:
        said = err.decode(errors="backslashreplace").strip() or f"exit code {process.returncode}"
        raise ToolError(f"{' '.join(command)}: {said}")
    return out.decode()


async def run_json(*command: str) -> Any:
    """Run a command that prints JSON, or nothing."""
    text = await run(*command)
    return json.loads(text) if text.strip() else []
