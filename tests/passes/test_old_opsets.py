"""Forms of operators that neither onnx's reference evaluator nor onnxruntime runs any more: their text alone."""

import pytest

from graphopt import pipeline, testing
from graphopt.text import from_text, to_text


def body(name: str, text: str) -> str:
    (step,) = pipeline.parse(name).passes()
    before = from_text(text)
    after, _, _ = testing.run(step, before)
    testing.valid(after)
    printed = to_text(after)
    return "\n".join(line.strip() for line in printed[printed.index("main") :].splitlines()[1:-1])


@pytest.mark.parametrize(
    ("name", "graph", "after"),
    [
        pytest.param(
            "merge-casts",
            """<ir_version: 3, opset_import: ["" : 5]> main (float16[3] x) => (double[3] y) {
               c = Cast <to = "FLOAT"> (x)
               y = Cast <to = "DOUBLE"> (c)
            }""",
            'y = Cast <to: string = "DOUBLE"> (x)',
            id="Cast-1 names the type",
        ),
        pytest.param(
            "merge-concats",
            """<ir_version: 3, opset_import: ["" : 3]> main (float[2,1] a, float[2,2] b) => (float[2,4] y) {
               i = Concat (a, b)
               y = Concat <axis = 1> (i, a)
            }""",
            "y = Concat <axis: int = 1> (a, b, a)",
            id="Concat-1 joins axis 1",
        ),
        pytest.param(
            "merge-slices",
            """<ir_version: 3, opset_import: ["" : 3]> main (float[2,6] x) => (float[2,6] y) {
               r = Neg (x)
               a, b = Split <axis = 1, split = [2, 4]> (r)
               j = Concat (a, b)
               y = Relu (j)
            }""",
            "<float[2,6] r>\n{\nr = Neg (x)\ny = Relu (r)",
            id="Concat-1 undoes Split-2",
        ),
        pytest.param(
            "merge-reshapes",
            """<ir_version: 3, opset_import: ["" : 4]> main (float[2,6] x) => (float[3,4] y) {
               r = Reshape <shape = [12]> (x)
               y = Reshape <shape = [3, 4]> (r)
            }""",
            "y = Reshape <shape: ints = [3, 4]> (x)",
            id="Reshape-1 has an attribute",
        ),
        pytest.param(
            "merge-reshapes",
            """<ir_version: 3, opset_import: ["" : 4]> main (float[2,6] x) => (float[2,2,3] y) {
               r = Reshape <shape = [2, 2, 3, 1]> (x)
               y = Squeeze <axes = [3]> (r)
            }""",
            "y = Reshape <shape: ints = [2, 2, 3]> (x)",
            id="Reshape-1 made of a Squeeze",
        ),
        pytest.param(
            "merge-reshapes",
            """<ir_version: 3, opset_import: ["" : 4]> main (int32[1,2,3] x) => (int32[2,3,1] y) {
               r = Unsqueeze <axes = [3]> (x)
               y = Squeeze <axes = [0]> (r)
            }""",
            "<int32[1,2,3,1] r>\n{\nr = Unsqueeze <axes: ints = [3]> (x)\ny = Squeeze <axes: ints = [0]> (r)",
            id="Reshape-1 takes no integers",
        ),
    ],
)
def test_text(name: str, graph: str, after: str) -> None:
    assert body(name, graph) == after
