// The Python module _C_cpu: functions that read the arguments of a pass and run it. They are called
// by fused_contrastive/backends/cpu.py, which checks every argument and makes the outputs.
#include <algorithm>
#include <iterator>
#include <new>
#include <vector>

#include "arguments.h"
#include "library.h"
#include "runtime.h"

namespace fused_contrastive {
namespace {

int64_t size_of(Type type) { return type == Type::Double ? 8 : type == Type::Float ? 4 : 2; }

// int32 keys that are equal exactly where the int64 keys are equal.
struct Keys {
  std::vector<int32_t> a, b;

  void rank(const int64_t* p, int64_t n, const int64_t* q, int64_t m) {
    const auto small = [](int64_t k) { return k == int32_t(k); };
    std::vector<int64_t> values;
    if (!std::all_of(p, p + n, small) || !std::all_of(q, q + m, small)) {
      values.assign(p, p + n);
      values.insert(values.end(), q, q + m);
      std::sort(values.begin(), values.end());
    }
    const auto rank_of = [&](int64_t k) {
      return values.empty()
                 ? int32_t(k)
                 : int32_t(std::lower_bound(values.begin(), values.end(), k) - values.begin());
    };
    std::transform(p, p + n, std::back_inserter(a), rank_of);
    std::transform(q, q + m, std::back_inserter(b), rank_of);
  }
};

void read(Arguments& x, Problem& p, Set& set) {
  x.addresses(set.x);
  set.type = Type(x.integer());
  set.group_stride = x.integer(), set.row_stride = x.integer(), set.n = x.integer();
  x.addresses(set.hat, set.inv, set.gradient);
  const int64_t elements = p.G * set.n * p.D;
  use_large_pages(set.hat, elements * size_of(p.matrix));
  use_large_pages(set.gradient, elements * size_of(set.type));
}

void read(Arguments& x, Problem& p, Keys& keys) {
  p.G = x.integer(), p.D = x.integer();
  p.matrix = Type(x.integer());
  p.scale = x.number();
  p.kind = Kind(x.integer());
  p.offset = x.integer(), p.stride = x.integer(), p.positive = x.integer();
  p.one_set = x.flag();
  read(x, p, p.a);
  if (p.one_set)
    p.b = p.a;
  else
    read(x, p, p.b);
  const int64_t *key_a, *key_b;
  x.addresses(key_a, key_b);
  if (!key_a) return;
  keys.rank(key_a, p.G * p.a.n, key_b, p.one_set ? 0 : p.G * p.b.n);
  p.key_a = keys.a.data();
  p.key_b = p.one_set ? p.key_a : keys.b.data();
}

void read(Arguments& x, Points& points) {
  x.addresses(points.x);
  points.type = Type(x.integer());
  points.group_stride = x.integer(), points.row_stride = x.integer();
  points.G = x.integer(), points.P = x.integer(), points.D = x.integer();
}

template <class F>
void run(Arguments& x, F kernel) {
  PyObject* memory = x.object();
  const int threads = int(x.integer());
  x.end();
  PythonRuntime runtime(memory, threads);
  kernel(&runtime);
}

// The gradient of the scale is the sum of those of the groups.
template <class F>
void run_with_scale(Arguments& x, F& f, void (*kernel)(const F&, Runtime*)) {
  void* dscale;
  x.addresses(dscale);
  std::vector<double> sums(size_t(f.G), 0.0);
  f.need_scale = dscale != nullptr;
  f.dscale = sums.data();
  run(x, [&](Runtime* runtime) { kernel(f, runtime); });
  if (!dscale) return;
  double total = 0;
  for (double sum : sums) total += sum;
  if (f.matrix == Type::Double)
    *static_cast<double*>(dscale) = total;
  else
    *static_cast<float*>(dscale) = float(total);
}

void similarity_forward(Arguments& x) {
  SimilarityForward f{};
  Keys keys;
  read(x, f, keys);
  f.normalize = x.flag();
  x.addresses(f.bias, f.rows, f.cols, f.pos, f.loss, f.row_max, f.col_max, f.mean);
  use_large_pages(f.mean, f.G * f.a.n * f.D * (f.matrix == Type::Double ? 8 : 4));
  run(x, [&](Runtime* runtime) { kernels_for(f.matrix).forward(f, runtime); });
}

void similarity_backward(Arguments& x) {
  SimilarityBackward f{};
  Keys keys;
  read(x, f, keys);
  x.addresses(f.bias, f.g_rows, f.g_cols, f.rows, f.cols, f.pos, f.mean, f.dbias);
  run_with_scale(x, f, kernels_for(f.matrix).backward);
}

void sigmoid_forward(Arguments& x) {
  SigmoidForward f{};
  Keys keys;
  read(x, f, keys);
  f.normalize = x.flag(), f.sign = int(x.integer());
  x.addresses(f.row_bias, f.rows, f.pos, f.row_max);
  run(x, [&](Runtime* runtime) { kernels_for(f.matrix).sigmoid_forward(f, runtime); });
}

void sigmoid_backward(Arguments& x) {
  SigmoidBackward f{};
  Keys keys;
  read(x, f, keys);
  f.sign = int(x.integer());
  x.addresses(f.row_bias, f.g, f.pos, f.dbias);
  run_with_scale(x, f, kernels_for(f.matrix).sigmoid_backward);
}

Type accumulation(Type type) { return type == Type::Double ? type : Type::Float; }

void force(Arguments& x) {
  Force f{};
  read(x, f);
  f.K = x.integer(), f.rows = x.integer(), f.negatives = x.integer();
  f.all_rows = x.flag(), f.mask = x.flag();
  f.self_logit = x.number(), f.floor = x.number(), f.denominator = x.number(), f.clip = x.number();
  f.rms = x.flag(), f.separate = x.flag();
  x.addresses(f.inverse_temperatures, f.given_scale, f.weight, f.force, f.log_norm, f.scale,
              f.lse_rows, f.lse_cols, f.shift, f.sums);
  const Type type = accumulation(f.type);
  use_large_pages(f.force, (f.separate ? f.K : 1) * f.G * f.rows * f.D * size_of(type));
  run(x, [&](Runtime* runtime) { force_kernels_for(type).force(f, runtime); });
}

void distances(Arguments& x) {
  Distances f{};
  read(x, f);
  f.rows = x.integer(), f.clip = x.number();
  x.addresses(f.weight, f.upstream, f.sums, f.gradient);
  run(x, [&](Runtime* runtime) { force_kernels_for(accumulation(f.type)).distances(f, runtime); });
}

void set_isa(Arguments& x) { choose_isa(int(x.integer())); }

// A function that Python calls. It returns None.
template <void (*function)(Arguments&)>
PyObject* called(PyObject*, PyObject* const* values, Py_ssize_t count) {
  try {
    Arguments arguments(values, count);
    function(arguments);
    Py_RETURN_NONE;
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

template <void (*function)(Arguments&)>
PyMethodDef method(const char* name) {
  const _PyCFunctionFast call = &called<function>;
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)), METH_FASTCALL,
          nullptr};
}

PyMethodDef methods[] = {method<similarity_forward>("similarity_forward"),
                         method<similarity_backward>("similarity_backward"),
                         method<sigmoid_forward>("sigmoid_forward"),
                         method<sigmoid_backward>("sigmoid_backward"),
                         method<force>("force"),
                         method<distances>("distances"),
                         method<set_isa>("set_isa"),
                         {}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cpu", nullptr, -1, methods, nullptr, nullptr,
                          nullptr, nullptr};

}  // namespace
}  // namespace fused_contrastive

PyMODINIT_FUNC PyInit__C_cpu(void) {
  PyObject* module = PyModule_Create(&fused_contrastive::definition);
  if (!module) return nullptr;
  PyModule_AddStringConstant(module, "VERSION", FUSED_CONTRASTIVE_VERSION);
  PyModule_AddStringConstant(module, "ISAS", fused_contrastive::isas().c_str());
  return module;
}
