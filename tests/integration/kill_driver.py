"""A process that begins other processes quickly: it has imported everything, and forks one for each sync that is asked for.

Asked and answered by lines of JSON: {"config", "env", "sync", "result"} → {"pid"}, any line → the sync begins,
{"status": the exit code, or a signal's number below zero}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# What a sync needs is loaded before the first fork.
import shared.app
import shared.azure_storage
import shared.config.build
import shared.histories.sqlite
import shared.queues.sqlite
import shared.vaults
import shared.vaults.hashicorp.kv
from shared import jobs
from shared.jobs import Message
from shared.queue_loop import QueueLoop


async def sync(asked: dict[str, Any]) -> dict[str, Any]:
    """Begin a run, or join the one that was on its way, and work until it has ended."""
    config = shared.config.build.parse(asked["config"].encode(), asked["env"], "test.yaml")
    async with shared.app.App(config, asked["env"]) as app:
        run = await app.engine.runs.start(asked["sync"], trigger="manual")
        ended = asyncio.Event()

        async def handle(message: Message) -> None:
            await app.engine.handle(message.body)
            if not (await app.engine.runs.view(run.run_id)).status.active:
                ended.set()

        queues = [jobs.write_queue(target.vault) for target in config.syncs[asked["sync"]].targets]
        loops = [QueueLoop(app.queues, queue, handle) for queue in (jobs.PLAN_QUEUE, *queues)]
        for loop in loops:
            loop.start()
        try:
            await asyncio.wait_for(ended.wait(), 60)
        finally:
            await asyncio.gather(*(loop.stop() for loop in loops))
        verified = await app.store.verify_history()
        told = asdict(await app.engine.runs.view(run.run_id))
        return {**told, "rows": verified.rows, "broken": [asdict(broken) for broken in verified.broken]}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(read, 1)
            status = 1
            try:
                Path(asked["result"]).write_text(json.dumps(asyncio.run(sync(asked)), default=str))
                status = 0
            finally:
                os._exit(status)
        tell({"pid": pid})
        sys.stdin.readline()
        os.write(write, b"!")
        _, status = os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
        tell({"status": os.waitstatus_to_exitcode(status)})


def tell(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
