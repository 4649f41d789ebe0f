// Checks every kernel header against plain loops: `native [family ...]`. Prints the instruction set that ran, the number of
// checks of each family, and the checks that failed; the exit status is 1 if there are any.
#include "check.h"

#include "simd.h"

int main(int count, char** names) {
  struct Family {
    const char* name;
    void (*check)(native::Checks&);
  };
  static const Family families[] = {{"vectors", native::check_vectors},
                                    {"linear", native::check_linear},
                                    {"convolution", native::check_convolution},
                                    {"attention", native::check_attention},
                                    {"elementwise", native::check_elementwise},
                                    {"fakequant", native::check_fakequant}};
  std::printf("isa %s\n", fxptq::isa());
  int failed = 0;
  for (const Family& family : families) {
    bool wanted = count < 2;
    for (int i = 1; i < count; ++i) wanted = wanted || !std::strcmp(names[i], family.name);
    if (!wanted) continue;
    native::Checks checks;
    family.check(checks);
    std::printf("%s: %d checks, %d failed\n", family.name, checks.done(), checks.failed());
    std::fflush(stdout);
    failed += checks.failed();
  }
  return failed != 0;
}
