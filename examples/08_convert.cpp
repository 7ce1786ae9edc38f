// Lesson 8: conversion by SVD. The latent is the best one of its rank for the matrices of keys and values. Look at the
// errors: a latent as wide as the model loses nothing, and what a smaller one loses is predicted from the weights.
// These are random, and random matrices have no low rank to find, so the losses are large.
#include <laconic/convert/convert.hpp>
#include <laconic/laconic.hpp>

#include <cstdio>

using namespace laconic;

int main() {
  const Conformer<Mha<4>> model({.num_mels = 40, .d_model = 64, .num_layers = 2, .vocab_size = 12}, Seed(1));
  std::printf("rank  cache  predicted  keys+values   logits\n");
  for (const Index rank : {64, 32, 16, 8}) {
    const auto [small, report] = convert<Conformer<MlaSimple<4, dyn>>>(model, JointSvd{}, {.kv_lora_rank = rank});
    std::printf("%4td  %4.1f%%  %9.4f  %11.4f  %7.5f\n", rank, 100.0 * static_cast<double>(rank) / (2 * 64),
                report.predicted_error, report.key_value_error, report.logits_error);
  }
}
// prints: ^  64  50.0% +0\.0000 +0\.0000  0\.0000
// prints: ^  32  25.0% +0\.[1-9]
// prints: ^  16  12.5% +0\.[2-9]
// prints: ^   8   6.2% +0\.[3-9]
