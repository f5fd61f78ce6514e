"""Converting for and running on MindSpore Lite: a program for a Python that has `mindspore_lite`.

Lite's wheels may be for another Python (2.0.0: 3.7), so this file keeps to Python 3.7, NumPy and `mindspore_lite`.

    python lite_session.py serve                  answers requests on standard input, see `serve`
    python lite_session.py convert IN.onnx OUT    writes OUT.ms, for the CPU and edge devices
"""

import os
import pickle
import sys

import numpy as np


class Sessions:
    """The exits of a cascade, loaded by MindSpore Lite; on the CPU with one thread by default."""

    def __init__(self, files, target, device_id, threads):
        import mindspore_lite as lite

        context = lite.Context()
        context.target = [target]
        if target == "ascend":
            context.ascend.device_id = device_id
        else:
            if threads and threads > 1 and lite.__version__.startswith("2.0."):
                raise RuntimeError("MindSpore Lite 2.0 computes small matrix products wrongly on more than one thread")
            context.cpu.thread_num = threads or 1
        self._models, self._batches = [], [None] * len(files)
        for path in files:
            kind = lite.ModelType.MINDIR_LITE if path.endswith(".ms") else lite.ModelType.MINDIR
            model = lite.Model()
            model.build_from_file(path, kind, context)
            self._models.append(model)

    def run(self, index, names, arrays):
        """One exit on arrays under their input names; returns its outputs, in order."""
        given = dict(zip(names, arrays))  # noqa: B905, Python 3.7 has no `strict`
        model, batch = self._models[index], len(arrays[0])
        inputs = model.get_inputs()
        if self._batches[index] != batch:
            model.resize(inputs, [list(given[each.name].shape) for each in inputs])
            self._batches[index] = batch
            inputs = model.get_inputs()
        for each in inputs:
            each.set_data_from_numpy(np.ascontiguousarray(given[each.name]))
        return [output.get_data_to_numpy() for output in model.predict(inputs)]


def convert(onnx_file, output):
    """Converts an exported ONNX file to `output`.ms."""
    import mindspore_lite as lite

    converter = lite.Converter()
    converter.save_type = lite.ModelType.MINDIR_LITE
    converter.input_format = lite.Format.NCHW  # else images would be wanted with the channels last
    converter.convert(fmk_type=lite.FmkType.ONNX, model_file=onnx_file, output_file=output)


def send(stream, message):
    """Writes arguments or an answer, for `pickle.load` at the other end; Python 3.7 reads protocol 4."""
    pickle.dump(message, stream, protocol=4)
    stream.flush()


def serve():
    """Answers each message on standard input with (error or None, outputs): first the arguments of `Sessions`, then
    those of its `run`."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Lite prints to standard output
    sessions = None
    while True:
        try:
            arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            outputs = None if sessions is None else sessions.run(*arguments)
            sessions = sessions or Sessions(*arguments)
            send(answers, (None, outputs))
        except Exception as error:  # whatever it is, the other side has to hear of it
            send(answers, (f"{type(error).__name__}: {error}", None))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["convert"] and len(sys.argv) == 4:
        convert(*sys.argv[2:])
    else:
        sys.exit(__doc__)
