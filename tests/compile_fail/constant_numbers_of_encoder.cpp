// The same for the numbers of a model, in an assertion.
// expect inside: " given, at most "
#include <laconic/model/conformer.hpp>

using namespace laconic;

constexpr EncoderConfig config{.num_mels = 80, .d_model = 32, .num_layers = 4, .vocab_size = 29};
static_assert(Conformer<MlaSimple<8, 64>>::cache_bytes(config, frames(1000)) > 0);
