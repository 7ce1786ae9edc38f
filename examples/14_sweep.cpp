// Lesson 14: a sweep at compile time. Every line is a type: what it holds, caches and computes are constant
// expressions, so the table costs nothing to compute, and a type that does not fit does not compile.
#include <laconic/laconic.hpp>

#include <cstdio>

using namespace laconic;

using Attentions = Types<                                                                             //
    Named<"MHA", Mha<16>>, Named<"GQA of 4", Gqa<16, 4>>, Named<"MQA", Mqa<16>>,                      //
    Named<"MLA, R = 128", Mla<16, 128>>, Named<"MLA, R = 256", Mla<16, 256>>,                         //
    Named<"MLA, R = 512", Mla<16, 512>>, Named<"MLA, R = 768", Mla<16, 768>>,                         //
    Named<"shared, R = 128", MlaSimple<16, 128>>, Named<"shared, R = 256", MlaSimple<16, 256>>,       //
    Named<"shared, R = 512", MlaSimple<16, 512>>, Named<"shared, R = 768", MlaSimple<16, 768>>,       //
    Named<"split, 128 + 128", MlaSplit<16, 128>>, Named<"split, 256 + 256", MlaSplit<16, 256>>,       //
    Named<"per head, R = 16", MlaHead<16, 16>>, Named<"per head, R = 32", MlaHead<16, 32>>,           //
    Named<"decoupled, 256 + 32", MlaDecoupled<16, 256, 32>>, Named<"cached input", CachedInput<16>>,  //
    Named<"linear", LinearAttention<16>>, Named<"8 heads, R = 256", MlaSimple<8, 256>>,               //
    Named<"32 heads, R = 256", MlaSimple<32, 256>>>;

int main() {
  constexpr AttentionConfig config{.d_model = 1024};
  constexpr Frames length = frames(1000);  // 40 s of speech
  std::printf("%td attentions of one layer, d_model %td, %td frames\n\n%-22s %12s %16s %10s\n", Index(Attentions::size),
              config.d_model, length.count, "", "parameters", "bytes of cache", "GFLOP");
  Index full = 0, smallest = 0;
  sweep<Attentions>([&]<class V>(V) {
    constexpr Index parameters = V::type::parameter_count(config), bytes = V::type::cache_bytes(config, length),
                    flops = V::type::flops(config, length);
    std::printf("%-22s %12td %16td %10.2f\n", V::name.data(), parameters, bytes, static_cast<double>(flops) * 1e-9);
    if (full == 0) full = bytes;
    if (V::name == "shared, R = 128") smallest = bytes;
  });
  std::printf("\nA latent of 128 elements caches 1/%td of full attention.\n", full / smallest);
}
// prints: ^MHA +5249024 +8192000
// prints: ^linear
// prints: caches 1/16 of full attention
