// Reads the arguments of a Python call in the order in which fused_contrastive/backends/cpu.py
// writes them.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

namespace fused_contrastive {

// Thrown where Python's error is set.
struct PythonError {};

class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count) : next_(values), end_(values + count) {}

  PyObject* object() {
    if (next_ == end_) wrong_number();
    return *next_++;
  }
  int64_t integer() {
    const int64_t value = PyLong_AsLongLong(object());
    if (value == -1) throw_error();
    return value;
  }
  double number() {
    const double value = PyFloat_AsDouble(object());
    if (value == -1) throw_error();
    return value;
  }
  bool flag() { return integer() != 0; }

  // Addresses of tensors. 0 stands for an absent one.
  template <class... T>
  void addresses(T*&... pointers) {
    ((pointers = reinterpret_cast<T*>(integer())), ...);
  }

  void end() const {
    if (next_ != end_) wrong_number();
  }

 private:
  static void throw_error() {
    if (PyErr_Occurred()) throw PythonError();
  }
  [[noreturn]] static void wrong_number() {
    PyErr_SetString(PyExc_TypeError, "the CPU kernels were built from other sources");
    throw PythonError();
  }

  PyObject* const* next_;
  PyObject* const* end_;
};

}  // namespace fused_contrastive
