"""The main job, shown on real processes: state that survives a kill, a failure, a fork and a change of mind.

python examples/demo.py                        # on SQLite and on files, in a temporary folder
python examples/demo.py sqlite://./demo.db     # on the store of your choice
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import chat
from s3_server import s3_server

from kvpersist import Persister

CHAT = Path(__file__).with_name("chat.py")


def main(urls: list[str]) -> None:
    """Show it on each of the stores, with the sync application and with the async one."""
    if urls:
        for url in urls:
            show_both(url)
        return
    with tempfile.TemporaryDirectory() as folder:
        show_both(f"sqlite://{folder}/demo.db")
        show_both(f"file://{folder}/demo")
    with s3_server() as (url, options):
        # The workers are processes of their own; they find the server as they would find AWS.
        os.environ.update(
            AWS_ACCESS_KEY_ID=options["key"],
            AWS_SECRET_ACCESS_KEY=options["secret"],
            AWS_ENDPOINT_URL=options["endpoint_url"],
            AWS_DEFAULT_REGION="us-east-1",
        )
        show_both(f"{url}/chats")


def show_both(url: str) -> None:
    """Show it on one store."""
    for asynchronous in (False, True):
        print(f"\n=== {url.partition('://')[0]}, {'async' if asynchronous else 'sync'} ===")
        show(url, asynchronous)


def show(url: str, asynchronous: bool) -> None:
    """Kill, fail, resume, fork and rewind one application, and check each time that nothing was lost."""
    app_id = f"chat-{uuid.uuid4().hex[:8]}"

    print("\n1. A worker starts the chat, and is killed in the middle of a step.")
    worker = start(url, app_id, asynchronous, CHAT_HANG_AT="thank you")
    assert worker.stdout is not None
    for line in worker.stdout:
        if line == "hanging\n":
            break
        print("  ", line, end="")
    worker.kill()
    assert worker.wait() == -9
    worker.stdout.close()
    with Persister.from_url(url, serde_kwargs=chat.SERDE) as persister:
        stored = persister.load("demo", app_id)
    assert stored is not None
    assert (stored["sequence_id"], stored["position"]) == (4, "ask")
    print("   killed in 'answer'; the last completed step is 4, 'ask'")

    print("2. A new process goes on, until the search service is down.")
    worker = start(url, app_id, asynchronous, CHAT_SEARCH_IS_DOWN="1")
    output, _ = worker.communicate()
    assert worker.returncode == 1
    print("  ", output.splitlines()[0])
    assert output.splitlines()[0].endswith("has done step 4 and goes on at 'answer'")
    print("   ended by: ConnectionError('the search service is down')")

    print("3. The service is back; a third process repeats the failed step and comes to the end.")
    worker = start(url, app_id, asynchronous)
    output, _ = worker.communicate()
    assert worker.returncode == 0
    print("  ", output.splitlines()[0])
    assert output.splitlines()[0].endswith("has done step 6 and goes on at 'search'")
    before = [message["content"] for message in loaded(url, app_id)["chat"]]
    assert len(before) == 10

    print("4. Another chat is forked from step 3 of this one, and asks something else.")
    fork = run(url, f"{app_id}-fork", asynchronous, {}, fork_from=(app_id, 3), script=["why a fork?"])
    assert [message["content"] for message in fork.state["chat"]] == [
        *before[:4],
        "why a fork?",
        "I looked up 'fork'.",
    ]

    print("5. The first chat goes back to step 5 and takes another way.")
    rewound = run(
        url, app_id, asynchronous, {"on_conflict": "rewind"}, sequence_id=5, script=["what is a rewind?", "bye"]
    )
    assert [message["content"] for message in rewound.state["chat"]][6:] == [
        "what is a rewind?",
        "I looked up 'rewind'.",
        "bye",
        "You said 'bye'.",
    ]
    assert loaded(url, app_id) == rewound.state.get_all()
    assert loaded(url, app_id)["profile"].topics == {"persister", "rewind"}

    print("\nThe history it ends with, newest first:")
    with Persister.from_url(url, serde_kwargs=chat.SERDE) as persister:
        for header in persister.history("demo", app_id, include_set_aside=True):
            note = "set aside by the rewind" if header.set_aside else ""
            print(f"   {header.sequence_id:3} {header.position:8} {header.status:9} {header.size:6} bytes  {note}")
        persister.delete_app("demo", app_id)
        persister.delete_app("demo", f"{app_id}-fork")


def start(url: str, app_id: str, asynchronous: bool, **environment: str) -> subprocess.Popen[str]:
    """Start a worker in a process of its own."""
    command = [sys.executable, str(CHAT), url, "--app", app_id, *(["--async"] if asynchronous else [])]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def run(url: str, app_id: str, asynchronous: bool, options: dict[str, Any], **kwargs: Any) -> Any:
    """Run the application here."""
    if asynchronous:
        return asyncio.run(chat.arun(url, app_id, options, **kwargs))
    return chat.run(url, app_id, options, **kwargs)


def loaded(url: str, app_id: str) -> dict[str, Any]:
    """The latest state that is stored."""
    with Persister.from_url(url, serde_kwargs=chat.SERDE) as persister:
        stored = persister.load("demo", app_id)
    assert stored is not None
    return stored["state"].get_all()


if __name__ == "__main__":
    main(sys.argv[1:])
