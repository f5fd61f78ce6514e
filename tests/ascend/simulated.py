"""Graphs compiled by MindSpore's Ascend back end in a child process, without a card.

    def labels() -> None:                       # at module level: the child imports the test's own file
        step, images, targets = ...
        step(images, targets)                   # compiles; the outputs are zeros

    @pytest.fixture(scope="module")
    def graphs(ascend: Ascend) -> dict[str, Graphs]:
        return ascend.compile(__file__, ["labels"])

    def test_labels(graphs: dict[str, Graphs]) -> None:
        assert not graphs["labels"].error and not graphs["labels"].aicpu()

One child compiles all functions of a file, one after the other: starting it takes longer than a tiny graph.
"""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dvt.cluster.simulation import AICPU, Kernels, environment, kernels_in, without_chatter

BEGIN, END = "=== begin", "=== end"
SECONDS = 1800  # of one child, on a busy machine


@dataclass(frozen=True)
class Node:
    """One operator in a compiled graph, as MindSpore's text of the graph has it.

    Attributes:
        operator: Such as MatMul.
        scope: The cells around it: "Default/losses-ExitLosses/model-DVT/exits-CellList/0-Backbone/...".
        inputs: Types of the tensors that it takes: ("Float32", "Float32").
        outputs: Of those that it makes.
    """

    operator: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graphs:
    """All that one function compiled.

    Attributes:
        error: The traceback of what it raised; empty if all went well.
        kernels: How often each (operator, kind) is launched; kinds are the values of `dvt.cluster.simulation.KINDS`.
        nodes: The operators of the graphs.
        order: Names of what is launched, scope and operator, in the order in which the last graph launches it.
        peak_bytes: Memory of the card that the function needed at most.
        log: What MindSpore and the package said.
    """

    error: str
    kernels: Kernels
    nodes: tuple[Node, ...]
    order: tuple[str, ...]
    peak_bytes: int
    log: str = field(repr=False)

    def aicpu(self) -> Counter[str]:
        """The operators that the slow processor beside the card's cores computes."""
        return self.of_kind(AICPU)

    def of_kind(self, kind: str) -> Counter[str]:
        """How often each operator is launched as a kernel of that kind."""
        return Counter({name: count for (name, its_kind), count in self.kernels.items() if its_kind == kind})


@dataclass(frozen=True)
class Ascend:
    """Simulated cards.

    Attributes:
        folder: Of the stand-ins for CANN, and for what the children write.
        variables: What the children need, for one card.
    """

    folder: Path
    variables: dict[str, str]

    @classmethod
    def make(cls, folder: Path) -> "Ascend":
        """Raises DeviceError where neither CANN nor stand-ins can be had."""
        return cls(folder, environment(folder))

    def compile(self, file: str, functions: list[str], cards: int = 1, rank: int = 0) -> dict[str, Graphs]:
        """What the named functions of `file` compile, as `rank` of so many cards."""
        written = self.folder / f"{Path(file).stem}-{cards}-{rank}"
        written.mkdir()
        variables = {
            **self.variables,
            "RANK_SIZE": str(cards),
            "RANK_ID": str(rank),
            "PYTHONPATH": os.pathsep.join([self.variables["PYTHONPATH"], *filter(None, sys.path)]),
            "MS_DEV_SAVE_GRAPHS": "1",
            "MS_DEV_SAVE_GRAPHS_PATH": str(written),
            "MS_DEV_DUMP_IR_PASSES": "graph_build",
        }
        command = [sys.executable, __file__, file, str(written), *functions]
        done = subprocess.run(
            command, env=variables, cwd=written, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
        assert done.returncode == 0, without_chatter(done.stderr)[-3000:]
        parts = re.split(rf"^{BEGIN} (\w+)$", done.stderr, flags=re.MULTILINE)[1:]
        return {name: _graphs(log, written / name) for name, log in zip(parts[::2], parts[1::2], strict=True)}


def _graphs(log: str, folder: Path) -> Graphs:
    result = json.loads((folder / "result.json").read_text())
    texts = [path.read_text(errors="replace") for path in sorted(folder.rglob("graph_build_*.ir"))]
    nodes = tuple(node for text in texts for node in _nodes(text))
    order: tuple[str, ...] = ()
    for path in folder.rglob("execute_order.csv"):
        with path.open(newline="") as file:
            order = tuple(row["node_name"] for row in csv.DictReader(file))
    return Graphs(result["error"], kernels_in(log), nodes, order, result["peak_bytes"], without_chatter(log))


# "  %5(name) = Im2Col(%1, ...) ..." with "      : (<Tensor[Float32], (4, 3)>) -> (...)" below, then the scope.
_NODE = re.compile(
    r"^  %\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(.*\n\s+: \((.*)\) -> \((.*)\)\n"
    r"(?:.*\n)*?\s+# Fullname with scope: \((.*)\)",
    re.MULTILINE,
)


def _nodes(text: str) -> list[Node]:
    return [
        Node(match[1], match[4], *(tuple(re.findall(r"Tensor\[(\w+)\]", types)) for types in (match[2], match[3])))
        for match in _NODE.finditer(text)
    ]


def _run_functions(file: str, folder: Path, names: list[str]) -> None:
    """In the child: calls each function and writes down what it raised and needed."""
    import mindspore as ms

    from dvt import device

    device.set_up("Ascend")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in names:
        written = folder / name
        written.mkdir()
        os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(written)
        print(f"{BEGIN} {name}", file=sys.stderr, flush=True)
        ms.runtime.reset_max_memory_allocated()
        error = ""
        try:
            getattr(module, name)()
        except Exception:
            error = traceback.format_exc()
        result = {"error": error, "peak_bytes": ms.runtime.max_memory_allocated()}
        (written / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    _run_functions(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
