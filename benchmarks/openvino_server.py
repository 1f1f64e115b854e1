"""OpenVINO in bfloat16, run at another process's word: ``python openvino_server.py MODEL THREADS``.

Writes a line of JSON once the model is compiled, or why it is not. Then it answers each line with one of its own:
``bind FILE.npz`` puts inputs where they are read, ``step`` runs once, ``run FILE.npz OUTPUT.npz`` writes the outputs.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import openvino
from memory import peak_bytes  # beside this file


def compiled(model: str, threads: str) -> tuple[openvino.CompiledModel | None, dict[str, object]]:
    """Compile; return the model too, or the reason why there is none."""
    core = openvino.Core()
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in offered:
        name = core.get_property("CPU", "FULL_DEVICE_NAME")
        return None, {"failure": f"no bfloat16 on {name}, which offers {', '.join(offered)}"}
    start, busy = time.perf_counter(), time.process_time()
    config = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    result = core.compile_model(model, "CPU", config)
    return result, {
        "package": "openvino",
        "version": openvino.__version__.partition("-")[0],
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - busy,
        "peak": peak_bytes(),
    }


def main() -> None:
    """Serve until the input ends."""
    model, figures = compiled(*sys.argv[1:])
    print(json.dumps(figures), flush=True)
    if model is None:
        return
    request = model.create_infer_request()
    for line in sys.stdin:
        what, *paths = line.split()
        if what == "bind":
            for name, array in np.load(paths[0]).items():
                request.set_tensor(name, openvino.Tensor(array))
        elif what == "step":
            request.infer()
        else:
            request.infer(dict(np.load(paths[0])))
            np.savez(paths[1], request.get_output_tensor(0).data)
        print("done", flush=True)


if __name__ == "__main__":
    main()
