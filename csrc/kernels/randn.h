// randn: the normal numbers of PyTorch's CPU generator, bit for bit, without PyTorch.
//
// What `torch.randn(size, generator=g)` returns for float32 after `g.manual_seed(seed)`, for any sequence of
// calls:
//   engine     MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits of the seed
//   16 or more uniforms in [0, 1) of 24 bits fill the output; each block of 16 then becomes 8 + 8 normals by
//   Box and
//              Muller's transform; when size is no multiple of 16, the last 16 elements are drawn and
//              transformed anew
//   under 16   Box-Muller in double, one pair of 53-bit uniforms at a time; the second normal of a pair is
//   kept for
//              the next call of fewer than 16 elements
//
// PyTorch transforms blocks with the Cephes polynomials for log, sin and cos on x86 with AVX2 and with the C
// library elsewhere; their results differ by up to 3e-6. BoxMuller names the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>

namespace fastdiff {

enum class BoxMuller { cephes, libm };

// What PyTorch uses on this machine.
BoxMuller native_box_muller();

// The state of one generator. Not synchronised: one thread at a time.
class Randn {
  public:
    Randn(std::uint64_t seed, BoxMuller method);

    // Writes `size` floats at `out`. size 0 leaves the state as it is.
    void fill(float* out, std::size_t size);

  private:
    void transform(float* block) const;
    float uniform();
    double uniform_double();
    double normal_double();

    std::mt19937 engine_;
    BoxMuller method_;
    std::optional<double> kept_;
};

}  // namespace fastdiff
