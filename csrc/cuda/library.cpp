// The Python module of the library. The operators register themselves: similarity_ops.cpp,
// sigmoid_ops.cpp, force_ops.cpp.
#include <Python.h>

#include "platform.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#define LIBRARY_NAME PyInit__C_cuda_host
#else
#define LIBRARY_NAME PyInit__C_cuda
#endif
#define STRING(name) QUOTED(name)
#define QUOTED(text) #text

#ifndef FUSED_CONTRASTIVE_HOST
// Two versions as 1000 major + 10 minor: the newest CUDA that the driver serves (0 without a
// driver), and the CUDA of the runtime in this library.
static PyObject* versions(PyObject*, PyObject*) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return Py_BuildValue("(ii)", driver, CUDART_VERSION);
}
#endif

// Importing the module loads the library, whose static initialisers register the operators.
PyMODINIT_FUNC LIBRARY_NAME() {
  static PyMethodDef methods[] = {
#ifndef FUSED_CONTRASTIVE_HOST
      {"versions", versions, METH_NOARGS, nullptr},
#endif
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "fused_contrastive", nullptr, -1, methods};
  PyObject* created = PyModule_Create(&module);
#ifdef FUSED_CONTRASTIVE_SOURCES
  if (created != nullptr)
    PyModule_AddStringConstant(created, "SOURCES", STRING(FUSED_CONTRASTIVE_SOURCES));
#endif
  return created;
}
