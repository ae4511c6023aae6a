"""A process that does shards of a run, one after the other; it loads the model once.

    python -m flows.run.worker    shards on standard input, a line of JSON each; how they ended on standard output

A line that names a run and no items has it load the model, and is not answered. It ends with whoever started it: when
its standard input is closed, in the middle of a shard, too.
"""

import json
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from tasks.errors import InputError, first_line


def main() -> None:
    # What libraries print must not come among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = asked.get()
        if "items" in request:
            print(json.dumps(_answer(request)), file=answers, flush=True)
        else:
            _prepare(request)


def _prepare(request: dict[str, Any]) -> None:
    """Loads the model of a run, while others do what all wait for; what is wrong is said with the first shard."""
    from flows.run.spec import Run, spec_of

    with suppress(Exception):
        spec_of(Run.model_validate(request["run"])).subject.load()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """How a shard ended: the seconds that it took, and which items have no result; or why it cannot be done."""
    from flows.run.execution import execute_items  # torch takes seconds to import, and the thread must be there before
    from flows.run.spec import Run, spec_of

    begun = time.monotonic()
    try:
        spec = spec_of(Run.model_validate(request["run"]))
        spec.subject.load()
        begun = time.monotonic()
        failed = execute_items(spec, request["audit_id"], request["stage"], request["items"])
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": first_line(error)}
    return {"seconds": time.monotonic() - begun, "failed": failed}


if __name__ == "__main__":
    main()
