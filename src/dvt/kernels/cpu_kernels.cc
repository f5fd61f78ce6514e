// GELU and LayerNorm for MindSpore's CPU backend, float32, forward and backward.
//
// MindSpore's own GELU runs on one thread without vector instructions and is more than half of a DVT forward pass; its
// LayerNorm gradient is as costly. Each function follows the interface of ops.Custom(func_type="aot"): params holds
// the inputs, then the outputs; the return value is 0 on success.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr float kInvSqrt2 = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143267f;
constexpr int64_t kGrain = 1 << 15;  // elements below which a second thread costs more than it saves
constexpr float kEpsilonScale = 1.0f;

int64_t Count(const int64_t *shape, int ndim) {
  int64_t n = 1;
  for (int i = 0; i < ndim; ++i) n *= shape[i];
  return n;
}

bool AllFloat32(const char **dtypes, int nparam) {
  for (int i = 0; i < nparam; ++i) {
    if (std::strcmp(dtypes[i], "float32") != 0) return false;
  }
  return true;
}

// Calls body(part, begin, end) for consecutive parts of [0, n), on as many threads as pay.
template <typename Body>
int Parallel(int64_t n, int64_t elements_each, const Body &body) {
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t parts = std::max<int64_t>(1, std::min({cores, n, n * elements_each / kGrain}));
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) {
    threads.emplace_back([&, part] { body(part, n * part / parts, n * (part + 1) / parts); });
  }
  body(0, 0, n / parts);
  for (auto &thread : threads) thread.join();
  return static_cast<int>(parts);
}

}  // namespace
