"""A process that has Triton build host modules, and prints what came of it."""

from __future__ import annotations

import json
import os

from kiln_torch import flush, plugin, stats

plugin.autoload()

from triton.runtime import build  # noqa: E402

SOURCE = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *args) { return PyLong_FromLong(ANSWER); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "host", 0, -1, methods};
PyMODINIT_FUNC PyInit_host(void) { return PyModule_Create(&module); }
"""


def main() -> None:
    """Build one module, and say what it answers."""
    if os.environ.get("OWN_IMPL"):
        own = build._build.__wrapped__

        def impl(*args: object) -> str:
            build.knobs.build.impl = None
            return own(*args, [])

        build.knobs.build.impl = impl
    source = SOURCE.replace("ANSWER", os.environ["ANSWER"])
    made = build.compile_module_from_src(source, "host")
    flush()
    print("report " + json.dumps({"answer": made.answer(), "stats": stats()}))


if __name__ == "__main__":
    main()
