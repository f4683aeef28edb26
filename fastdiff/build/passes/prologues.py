"""prologues: which part of a module runs once per prompt or once per schedule instead of once per step.

Keys and values of cross-attention depend on the prompt alone; the time MLP and the projections of its result
on the timestep alone.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fastdiff.errors import InputError

__all__ = ["Stage", "stages"]


class Stage(Enum):
    """When a node runs: once per prompt, once for all timesteps of a schedule as one batch, in every step."""

    PROMPT = "prompt"
    SCHEDULE = "schedule"
    STEP = "step"


def stages(
    program: ExportedProgram, prompt_inputs: Collection[str] = (), schedule_inputs: Collection[str] = ()
) -> dict[fx.Node, Stage]:
    """The stage of every node of ``program.graph`` whose value is a tensor or several.

    ``prompt_inputs`` and ``schedule_inputs`` name inputs of the module. A node that depends on inputs of one
    of the two kinds and on weights alone has that stage; one that depends on weights alone, its users' first
    stage, in the order of :class:`Stage`. All others run in every step, as does all of a module without such
    inputs. Sizes count for nothing, being known before any stage runs. Raises InputError for a name that the
    module does not have, or that is in both lists.
    """
    signature = program.graph_signature
    inputs = {spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT}
    for kind, names in (("prompt", prompt_inputs), ("schedule", schedule_inputs)):
        unknown = [name for name in names if name not in inputs]
        if unknown:
            raise InputError(
                f"{kind} inputs: found {unknown[0]!r}, wanted some of {', '.join(sorted(inputs))}"
            )
    both = sorted(set(prompt_inputs) & set(schedule_inputs))
    if both:
        raise InputError(f"{both[0]!r} is among the prompt and the schedule inputs, wanted in one of them")

    reached: dict[fx.Node, set[Stage]] = {}  # by inputs of which stages
    for node in program.graph.nodes:
        if node.op == "placeholder":
            reached[node] = (
                {_of_input(node.name, prompt_inputs, schedule_inputs)} if node.name in inputs else set()
            )
        else:
            reached[node] = {stage for x in node.all_input_nodes if _is_data(x) for stage in reached[x]}
    result: dict[fx.Node, Stage] = {}
    for node in reversed(program.graph.nodes):
        if node.op == "output" or not _is_data(node):
            continue
        found = list(reached[node])
        if not found:
            users = {result[user] for user in node.users if user in result}
            found = [stage for stage in Stage if stage in users][:1]
        result[node] = found[0] if len(found) == 1 else Stage.STEP
    return {node: result[node] for node in program.graph.nodes if node in result}


def _of_input(name: str, prompt_inputs: Collection[str], schedule_inputs: Collection[str]) -> Stage:
    if name in prompt_inputs:
        return Stage.PROMPT
    return Stage.SCHEDULE if name in schedule_inputs else Stage.STEP


def _is_data(node: fx.Node) -> bool:
    """Whether the value of ``node`` consists of tensors, not of sizes."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (
        isinstance(value, (list, tuple)) and all(isinstance(part, Tensor) for part in value)
    )
