// A latent has no bias for the keys, so it does not go with positions under which that bias matters.
// expect: laconic: a latent drops the bias of the keys, which matters under this position policy
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

struct RotatedKeys : NoPosition {
  static constexpr bool key_bias_cancels = false;
};

void drops(const Conformer<Mha<8, RotatedKeys>>& model) { convert<Conformer<MlaSimple<8, 64, RotatedKeys>>>(model); }
