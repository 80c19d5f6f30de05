"""A Burr application whose parallel parts run in other processes, on Ray: run by `test_parallel` as a script.

Its argument is JSON: for each store the URL and the options of `Persister.from_url`.  It prints, for each store, the
results and the processes that the parts ran in.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, ClassVar

import ray
from burr.core import ApplicationBuilder, GraphBuilder, State, action, default
from burr.core.parallelism import MapStates, RunnableGraph
from burr.integrations.ray import RayExecutor

from kvpersist import Persister


@action(reads=["n"], writes=["square"])
def square(state: State[Any]) -> State[Any]:
    return state.update(square=state["n"] ** 2)


@action(reads=["square"], writes=["out", "process"])
def finish(state: State[Any]) -> State[Any]:
    return state.update(out=(state["square"], b"\0"), process=os.getpid())


class Squares(MapStates):
    reads: ClassVar[list[str]] = ["numbers"]
    writes: ClassVar[list[str]] = ["outs", "processes"]

    def action(self, state: State[Any], inputs: dict[str, Any]) -> RunnableGraph:
        graph = GraphBuilder().with_actions(square, finish).with_transitions(("square", "finish", default)).build()
        return RunnableGraph(graph, "square", ["finish"])

    def states(self, state: State[Any], context: Any, inputs: dict[str, Any]) -> Any:
        for number in state["numbers"]:
            yield state.update(n=number)

    def reduce(self, state: State[Any], states: Any) -> State[Any]:
        states = list(states)
        return state.update(outs=[each["out"] for each in states], processes=[each["process"] for each in states])


def main() -> None:
    results = {}
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    for name, (url, options) in json.loads(sys.argv[1]).items():
        with Persister.from_url(url, **options) as persister:
            app = (
                ApplicationBuilder()
                .with_actions(squares=Squares())
                .with_transitions(("squares", "squares", default))
                .initialize_from(
                    persister,
                    resume_at_next_action=True,
                    default_state={"numbers": [1, 2, 3]},
                    default_entrypoint="squares",
                )
                .with_state_persister(persister)
                .with_identifiers(app_id="parent", partition_key="p")
                .with_parallel_executor(RayExecutor)
                .build()
            )
            _, _, state = app.step()
            results[name] = {"here": os.getpid(), "outs": [n for n, _ in state["outs"]], "there": state["processes"]}
    ray.shutdown()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
