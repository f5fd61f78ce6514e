// Calls one kernel of a library: `call_kernel LIBRARY NAME SHAPE...`, float32 arrays on standard input, inputs and outputs
// as they are afterwards on standard output. SHAPE is "2,3".
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

using Kernel = int (*)(int, void **, int *, int64_t **, const char **, void *, void *);

int main(int argc, char **argv) {
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  const auto kernel = reinterpret_cast<Kernel>(dlsym(library, argv[2]));
  if (kernel == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;

  const int count = argc - 3;
  std::vector<std::vector<int64_t>> shapes(count);
  std::vector<std::vector<float>> arrays(count);
  std::vector<int> ndims;
  std::vector<void *> params;
  std::vector<int64_t *> sizes;
  for (int i = 0; i < count; ++i) {
    std::istringstream text(argv[3 + i]);
    int64_t total = 1;
    for (std::string each; std::getline(text, each, ',');) shapes[i].push_back(std::stoll(each)), total *= shapes[i].back();
    arrays[i].resize(total);
    if (std::fread(arrays[i].data(), sizeof(float), total, stdin) != static_cast<size_t>(total)) return 3;
    ndims.push_back(shapes[i].size());
    params.push_back(arrays[i].data());
    sizes.push_back(shapes[i].data());
  }
  std::vector<const char *> types(count, "float32");
  const int code = kernel(count, params.data(), ndims.data(), sizes.data(), types.data(), nullptr, nullptr);
  for (const auto &each : arrays) std::fwrite(each.data(), sizeof(float), each.size(), stdout);
  return code;
}
