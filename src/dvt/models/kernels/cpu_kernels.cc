// GELU, LayerNorm, softmax, biases and a transposition for MindSpore's CPU backend, float32, forward and backward.
//
// MindSpore's own exact GELU runs on one thread without vector instructions and is more than half of a DVT forward
// pass; its LayerNorm gradient is as costly; BiasAdd and its gradient are a sixth of a step; every Transpose, and every
// operator that broadcasts such as those of the gradient of softmax, holds 8 or 16 bytes per element for as long as the
// graph lives, which is most of the memory of a model. Functions follow the interface of ops.Custom(func_type="aot"):
// `params` holds the inputs, then the outputs; the return value is 0 on success.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr float kInvSqrt2 = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143267f;
constexpr int64_t kTile = 16;
constexpr int64_t kGrain = 1 << 16;  // elements per thread below which another thread costs more than it saves

struct Arrays {
  float **data;
  int *ndims;
  int64_t **shapes;

  int64_t Count(int i) const {
    int64_t n = 1;
    for (int d = 0; d < ndims[i]; ++d) n *= shapes[i][d];
    return n;
  }
};

bool AllFloat32(const char **dtypes, int nparam) {
  return std::all_of(dtypes, dtypes + nparam, [](const char *t) { return std::strcmp(t, "float32") == 0; });
}

// Cores that this process may use, which are fewer than the machine's where it is bound to some of them.
int64_t Cores() {
  static const int64_t cores = [] {
    cpu_set_t usable;
    CPU_ZERO(&usable);
    const bool known = sched_getaffinity(getpid(), sizeof(usable), &usable) == 0;
    return std::max<int64_t>(1, known ? CPU_COUNT(&usable) : std::thread::hardware_concurrency());
  }();
  return cores;
}

// Calls body(begin, end, part) for consecutive parts of [0, n), on as many threads as pay; returns the number of parts.
template <typename Body>
int64_t Parallel(int64_t n, int64_t elements_each, const Body &body) {
  const int64_t parts = std::max<int64_t>(1, std::min({Cores(), n, n * elements_each / kGrain}));
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) {
    threads.emplace_back([&body, n, part, parts] { body(n * part / parts, n * (part + 1) / parts, part); });
  }
  body(0, n / parts, int64_t{0});
  for (auto &thread : threads) thread.join();
  return parts;
}

inline float NormalCdf(float x) { return 0.5f * (1.0f + std::erf(x * kInvSqrt2)); }

// Mean and 1/sqrt(variance + epsilon) of one row.
inline void Moments(const float *x, int64_t dim, float epsilon, float *mean, float *scale) {
  float sum = 0.0f, squares = 0.0f;
  for (int64_t j = 0; j < dim; ++j) sum += x[j];
  const float m = sum / dim;
  for (int64_t j = 0; j < dim; ++j) squares += (x[j] - m) * (x[j] - m);
  *mean = m;
  *scale = 1.0f / std::sqrt(squares / dim + epsilon);
}

}  // namespace

// x -> x * Phi(x)
extern "C" int Gelu(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 2 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const float *x = arrays.data[0];
  float *y = arrays.data[1];
  Parallel(arrays.Count(0), 1, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] * NormalCdf(x[i]);
  });
  return 0;
}

// x, dy -> dx = dy * (Phi(x) + x phi(x))
extern "C" int GeluGrad(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 3 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const float *x = arrays.data[0], *dy = arrays.data[1];
  float *dx = arrays.data[2];
  Parallel(arrays.Count(0), 1, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      dx[i] = dy[i] * (NormalCdf(x[i]) + x[i] * kInvSqrt2Pi * std::exp(-0.5f * x[i] * x[i]));
    }
  });
  return 0;
}

// x (..., C), gamma (C), beta (C), epsilon (1) -> y (..., C)
extern "C" int LayerNorm(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 5 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t dim = arrays.Count(1), rows = arrays.Count(0) / dim;
  const float *x = arrays.data[0], *gamma = arrays.data[1], *beta = arrays.data[2];
  const float epsilon = arrays.data[3][0];
  float *y = arrays.data[4];
  Parallel(rows, dim, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * dim;
      float *out = y + row * dim;
      float mean, scale;
      Moments(in, dim, epsilon, &mean, &scale);
      for (int64_t j = 0; j < dim; ++j) out[j] = (in[j] - mean) * scale * gamma[j] + beta[j];
    }
  });
  return 0;
}

// x, gamma, epsilon, dy -> dx, dgamma, dbeta
extern "C" int LayerNormGrad(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *,
                             void *) {
  if (nparam != 7 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t dim = arrays.Count(1), rows = arrays.Count(0) / dim;
  const float *x = arrays.data[0], *gamma = arrays.data[1], *dy = arrays.data[3];
  const float epsilon = arrays.data[2][0];
  float *dx = arrays.data[4];
  std::vector<float> sums(Cores() * 2 * dim, 0.0f);  // dgamma and dbeta of each part
  float *partial = sums.data();
  const int64_t parts = Parallel(rows, dim, [=](int64_t begin, int64_t end, int64_t part) {
    float *dgamma = partial + part * 2 * dim, *dbeta = dgamma + dim;
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * dim, *out = dy + row * dim;
      float mean, scale, sum = 0.0f, product = 0.0f;
      Moments(in, dim, epsilon, &mean, &scale);
      for (int64_t j = 0; j < dim; ++j) {
        const float normed = (in[j] - mean) * scale, g = out[j] * gamma[j];
        dgamma[j] += out[j] * normed;
        dbeta[j] += out[j];
        sum += g;
        product += g * normed;
      }
      sum /= dim;
      product /= dim;
      for (int64_t j = 0; j < dim; ++j) {
        dx[row * dim + j] = scale * (out[j] * gamma[j] - sum - (in[j] - mean) * scale * product);
      }
    }
  });
  float *dgamma = arrays.data[5], *dbeta = arrays.data[6];
  for (int64_t j = 0; j < dim; ++j) {
    dgamma[j] = dbeta[j] = 0.0f;
    for (int64_t part = 0; part < parts; ++part) {
      dgamma[j] += partial[part * 2 * dim + j];
      dbeta[j] += partial[part * 2 * dim + dim + j];
    }
  }
  return 0;
}

// x (..., C) -> softmax over the last axis
extern "C" int Softmax(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 2 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t dim = shapes[0][ndims[0] - 1];
  const float *x = arrays.data[0];
  float *y = arrays.data[1];
  Parallel(arrays.Count(0) / dim, dim, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * dim;
      float *out = y + row * dim;
      float largest = in[0], sum = 0.0f;
      for (int64_t j = 1; j < dim; ++j) largest = std::max(largest, in[j]);
      for (int64_t j = 0; j < dim; ++j) {
        out[j] = std::exp(in[j] - largest);
        sum += out[j];
      }
      const float scale = 1.0f / sum;
      for (int64_t j = 0; j < dim; ++j) out[j] *= scale;
    }
  });
  return 0;
}

// y = softmax(x), dy -> dx = y * (dy - sum(y * dy))
extern "C" int SoftmaxGrad(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *,
                           void *) {
  if (nparam != 3 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t dim = shapes[0][ndims[0] - 1];
  const float *y = arrays.data[0], *dy = arrays.data[1];
  float *dx = arrays.data[2];
  Parallel(arrays.Count(0) / dim, dim, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin * dim; i < end * dim; i += dim) {
      float sum = 0.0f;
      for (int64_t j = i; j < i + dim; ++j) sum += y[j] * dy[j];
      for (int64_t j = i; j < i + dim; ++j) dx[j] = y[j] * (dy[j] - sum);
    }
  });
  return 0;
}

// x (N, C) or (N, C, P), bias (C) -> y = x + bias along axis 1
extern "C" int AddBias(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 3 || ndims[0] < 2 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t rows = shapes[0][0], dim = shapes[0][1], width = arrays.Count(0) / (rows * dim);
  const float *x = arrays.data[0], *bias = arrays.data[1];
  float *y = arrays.data[2];
  Parallel(rows, dim * width, [=](int64_t begin, int64_t end, int64_t) {
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * dim * width;
      float *out = y + row * dim * width;
      if (width == 1) {
        for (int64_t j = 0; j < dim; ++j) out[j] = in[j] + bias[j];
      } else {
        for (int64_t j = 0; j < dim; ++j) {
          for (int64_t p = j * width; p < (j + 1) * width; ++p) out[p] = in[p] + bias[j];
        }
      }
    }
  });
  return 0;
}

// dy (N, C) or (N, C, P) -> dbias (C)
extern "C" int AddBiasGrad(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *,
                           void *) {
  if (nparam != 2 || ndims[0] < 2 || !AllFloat32(dtypes, nparam)) return 1;
  const Arrays arrays{reinterpret_cast<float **>(params), ndims, shapes};
  const int64_t rows = shapes[0][0], dim = shapes[0][1], width = arrays.Count(0) / (rows * dim);
  const float *dy = arrays.data[0];
  std::vector<float> sums(Cores() * dim, 0.0f);  // of each part
  float *partial = sums.data();
  const int64_t parts = Parallel(rows, dim * width, [=](int64_t begin, int64_t end, int64_t part) {
    float *sum = partial + part * dim;
    for (int64_t row = begin; row < end; ++row) {
      const float *out = dy + row * dim * width;
      if (width == 1) {
        for (int64_t j = 0; j < dim; ++j) sum[j] += out[j];
      } else {
        for (int64_t j = 0; j < dim; ++j) {
          float along = 0.0f;
          for (int64_t p = j * width; p < (j + 1) * width; ++p) along += out[p];
          sum[j] += along;
        }
      }
    }
  });
  float *dbias = arrays.data[1];
  for (int64_t j = 0; j < dim; ++j) {
    dbias[j] = 0.0f;
    for (int64_t part = 0; part < parts; ++part) dbias[j] += partial[part * dim + j];
  }
  return 0;
}

namespace {

// D is that of SwapMiddle if the compiler knows it, else 0: copies of a few floats are quick only if it does.
template <int64_t D>
void SwapBands(const float *x, float *y, int64_t I, int64_t J, int64_t depth, int64_t begin, int64_t end) {
  const int64_t each = D ? D : depth;
  const int64_t bands = (I + kTile - 1) / kTile;  // of rows of x, so that reads and writes of a tile stay in the cache
  for (int64_t band = begin; band < end; ++band) {
    const float *from = x + band / bands * I * J * each;
    float *to = y + band / bands * I * J * each;
    const int64_t first = band % bands * kTile, last = std::min(first + kTile, I);
    for (int64_t tile = 0; tile < J; tile += kTile) {
      for (int64_t j = tile; j < std::min(tile + kTile, J); ++j) {
        for (int64_t i = first; i < last; ++i) std::copy_n(from + (i * J + j) * each, each, to + (j * I + i) * each);
      }
    }
  }
}

}  // namespace

// x (A, I, J, D) -> y (A, J, I, D); its own gradient.
extern "C" int SwapMiddle(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, void *) {
  if (nparam != 2 || ndims[0] != 4 || !AllFloat32(dtypes, nparam)) return 1;
  const float *x = static_cast<float *>(params[0]);
  float *y = static_cast<float *>(params[1]);
  const int64_t I = shapes[0][1], J = shapes[0][2], D = shapes[0][3];
  const auto swap = D == 1 ? SwapBands<1> : D == 32 ? SwapBands<32> : D == 64 ? SwapBands<64> : SwapBands<0>;
  Parallel(shapes[0][0] * ((I + kTile - 1) / kTile), std::min(I, kTile) * J * D,
           [=](int64_t begin, int64_t end, int64_t) { swap(x, y, I, J, D, begin, end); });
  return 0;
}

// Shapes and types of the outputs. MindSpore asks for them here rather than in Python, since it cannot call Python
// while it runs a graph whose inputs or outputs hold None. Type ids are MindSpore's enum, passed through as they come.
using Shape = std::vector<int64_t>;

extern "C" Shape GeluInferShape(int *ndims, int64_t **shapes, void *) { return {shapes[0], shapes[0] + ndims[0]}; }
extern "C" Shape GeluGradInferShape(int *ndims, int64_t **shapes, void *) { return {shapes[0], shapes[0] + ndims[0]}; }
extern "C" Shape LayerNormInferShape(int *ndims, int64_t **shapes, void *) {
  return {shapes[0], shapes[0] + ndims[0]};
}
extern "C" std::vector<Shape> LayerNormGradInferShape(int *ndims, int64_t **shapes, void *) {
  const Shape dx(shapes[0], shapes[0] + ndims[0]), dgamma(shapes[1], shapes[1] + ndims[1]);
  return {dx, dgamma, dgamma};
}
extern "C" Shape SoftmaxInferShape(int *ndims, int64_t **shapes, void *) { return {shapes[0], shapes[0] + ndims[0]}; }
extern "C" Shape SoftmaxGradInferShape(int *ndims, int64_t **shapes, void *) {
  return {shapes[0], shapes[0] + ndims[0]};
}
extern "C" Shape AddBiasInferShape(int *ndims, int64_t **shapes, void *) { return {shapes[0], shapes[0] + ndims[0]}; }
extern "C" Shape AddBiasGradInferShape(int *, int64_t **shapes, void *) { return {shapes[0][1]}; }
extern "C" Shape SwapMiddleInferShape(int *, int64_t **shapes, void *) {
  return {shapes[0][0], shapes[0][2], shapes[0][1], shapes[0][3]};
}

extern "C" int GeluInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int GeluGradInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int LayerNormInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int SoftmaxInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int SoftmaxGradInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int AddBiasInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int AddBiasGradInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" int SwapMiddleInferType(std::vector<int> types, void *) { return types[0]; }
extern "C" std::vector<int> LayerNormGradInferType(std::vector<int> types, void *) {
  return {types[0], types[0], types[0]};
}
